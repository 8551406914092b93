"""Two ranks with half of the batch each get the gradient of one rank with all of it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from headct.objective.dino import CodingRate, Sinkhorn
from headct.objective.dino_config import ClsConfig, SinkhornConfig
from headct.objective.ranks import gathered, mean_over_ranks, own_rows

SMALL = {"hidden": 16, "out": 8}
VIEWS = torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(0))
TEACHER = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1))


def term(objective: str) -> CodingRate | Sinkhorn:
    torch.manual_seed(0)
    if objective == "sinkhorn":
        sinkhorn = SinkhornConfig(n_prototypes=6, n_queue=24)
        return Sinkhorn(12, ClsConfig(objective="sinkhorn", sinkhorn=sinkhorn, **SMALL))
    return CodingRate(12, ClsConfig(**SMALL))


def gradients(objective: str, scans: slice) -> list[torch.Tensor]:
    """Of the second of two steps, so that the state between steps counts too."""
    distillation = term(objective)
    for _ in range(2):
        distillation.zero_grad()
        distillation(VIEWS[:, scans], TEACHER[:, scans], 0.5)[0].backward()
        with torch.no_grad():
            distillation.after_step()
    return [p.grad for p in distillation.student.parameters()]


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for objective in ("coding-rate", "sinkhorn"):
        grads = gradients(objective, slice(3 * rank, 3 * rank + 3))
        for grad in grads:
            dist.all_reduce(grad)
        if rank == 0:
            torch.save([grad / 2 for grad in grads], f"{folder}/{objective}.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one(tmp_path: Path) -> None:
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    for objective in ("coding-rate", "sinkhorn"):
        ours = torch.load(tmp_path / f"{objective}.pt", weights_only=True)
        expected = gradients(objective, slice(0, 6))
        for mine, theirs in zip(ours, expected, strict=True):
            assert F.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.9999
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_one_rank_is_itself() -> None:
    rows = torch.rand(3, 2)
    assert gathered(rows) is rows
    assert mean_over_ranks(rows) is rows
    assert own_rows(3) == slice(0, 3)
