"""The learning curve of `difficulty.py`: a small 3D network on more and more labels."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from difficulty import macro, report
from difficulty_scans import Arrays, collect, folder_of
from numpy.typing import NDArray
from torch import Tensor, nn

from headct.phantom.profile import FINDINGS, PhantomPreset
from headct.volume.window import BLOOD, BONE, BRAIN, STROKE

WINDOWS = (BRAIN, BLOOD, BONE, STROKE)
BATCH = 16
RATE = 2e-3


def network() -> nn.Sequential:
    """Patches of 13 mm, four residual blocks, mean and maximum over the head: 0.4 M parameters."""
    return nn.Sequential(
        nn.Conv3d(len(WINDOWS), 32, 4, stride=4),
        _Block(32),
        _Block(32),
        nn.Conv3d(32, 64, 2, stride=2),
        _Block(64),
        _Block(64),
        _Pool(),
        nn.Dropout(0.2),
        nn.Linear(128, len(FINDINGS)),
    )


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.GELU(), nn.Conv3d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat.amax(2)], dim=1)


def windows(shard: Arrays) -> Arrays:
    """Scans as bytes [n w z y x]: a quarter of the memory of float."""
    views = [window.apply(shard["hu"].astype(np.float32)) for window in WINDOWS]
    levels = np.stack(views, axis=1)
    return {"x": np.rint((levels + 1) * 127.5).astype(np.uint8), "y": shard["y"]}


def curve(preset: PhantomPreset, given: argparse.Namespace) -> None:
    """Print the scores at each number of labels; a size that is done is not trained again."""
    parts = {"train": max(given.labels), "inside": given.n_test, "outside": given.n_test}
    data = {}
    for part, n in parts.items():
        shards = collect("scans", part, n, preset, given.work, given.jobs)
        rows = [windows(shard) for shard in shards]
        data[part] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    torch.set_num_threads(1)
    for n in given.labels:
        path = folder_of(preset, given.work) / f"curve-{n}-{given.passes}.npz"
        if not path.exists():
            _train(data, n, given.passes, path)
        with np.load(path) as scores:
            for part in ("inside", "outside"):
                report("curve", part, n, [macro(data[part]["y"], scores[part])])


def _train(data: dict[str, Arrays], n: int, passes: int, path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net, start = network(), time.process_time()
    n_steps = max(passes, round(passes * 900 / n)) * (n // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=n_steps)
    for _ in range(n_steps):
        rows = rng.choice(n, BATCH, replace=False)
        x = _tensor(data["train"]["x"][rows])
        flipped = torch.from_numpy(rng.random(BATCH) < 0.5)
        x[flipped] = x[flipped].flip(-1)
        x = torch.roll(x, tuple(int(v) for v in rng.integers(-2, 3, 3)), (2, 3, 4))
        y = torch.from_numpy(data["train"]["y"][rows]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    scores = {part: _scores(net, data[part]["x"]) for part in ("inside", "outside")}
    np.savez(path, **scores)
    print(json.dumps({"trained": n, "cpu_s": round(time.process_time() - start)}), flush=True)


def _tensor(x: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(x).float() / 127.5 - 1


@torch.no_grad()
def _scores(net: nn.Module, x: NDArray[np.uint8]) -> NDArray[np.float64]:
    net.eval()
    views = [
        net(_tensor(part)) + net(_tensor(part).flip(-1))
        for part in np.array_split(x, max(1, len(x) // BATCH))
    ]
    return torch.cat(views).double().numpy()
