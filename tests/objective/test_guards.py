"""Guards tell collapsed batches from healthy ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from headct.objective.guards import alarms, cls_std, effective_rank, entropy_shares

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "objectives.md"


def test_cls_std_is_one_on_a_sphere_and_zero_at_a_point() -> None:
    generator = torch.Generator().manual_seed(0)
    assert cls_std(torch.randn(4000, 32, generator=generator)).item() == pytest.approx(1, rel=0.02)
    assert cls_std(torch.ones(8, 32)).item() == pytest.approx(0, abs=1e-6)
    near = torch.ones(100, 32) + 0.05 * torch.randn(100, 32, generator=generator)
    assert 0.02 < cls_std(near).item() < 0.1


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    for rank in (1, 4):
        weights = torch.cat([torch.eye(rank), -torch.eye(rank)])
        assert effective_rank(weights @ basis[:rank]).item() == pytest.approx(rank, rel=1e-3)
    assert effective_rank(torch.ones(8, 32)).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_of_what_is_not_finite_a_guard_is_nan(n: int, bad: float) -> None:
    cls = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    for places in (slice(None), (1, 2)):
        cls[places] = bad
        assert effective_rank(cls).isnan()
        assert cls_std(cls).isnan()
    assert all(share.isnan() for share in entropy_shares(torch.full((3, 4), math.nan)))


def test_no_solver_is_given_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    given, real = [], torch.linalg.eigvalsh

    def solve(gram: torch.Tensor) -> torch.Tensor:
        given.append(gram)
        return real(gram)

    monkeypatch.setattr(torch.linalg, "eigvalsh", solve)
    assert effective_rank(torch.full((4, 8), math.nan)).isnan()
    assert given[0].isfinite().all()


def test_a_rank_that_the_solver_does_not_find_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    assert effective_rank(torch.eye(4)).isnan()


def test_entropies_are_shares_of_log_k() -> None:
    sharp = torch.eye(4)
    of_mean, mean_of = entropy_shares(sharp)
    assert of_mean.item() == pytest.approx(1)
    assert mean_of.item() == pytest.approx(0)
    of_mean, mean_of = entropy_shares(sharp[:1].expand(4, -1))
    assert of_mean.item() == pytest.approx(0)
    of_mean, mean_of = entropy_shares(torch.full((3, 4), 0.25))
    assert mean_of.item() == pytest.approx(1)


def test_the_page_says_which_numbers_an_alarm_looks_at() -> None:
    class Asked(dict[str, float]):
        names: ClassVar[set[str]] = set()

        def get(self, name: str, default: float) -> float:  # type: ignore[override]
            self.names.add(name)
            return super().get(name, default)

    alarms(Asked(cls_loss=1.0))
    rows = [
        line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("| `")
    ]
    told = {row[0].strip(" `") for row in rows if len(row) == 4 and row[3].strip() == "alarm"}
    assert told == Asked.names
    assert len(told) == 3


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        ({"cls_std": 0.05}, "same for every scan"),
        ({"teacher_entropy": 0.3}, "few prototypes"),
        ({"target_entropy": 0.99}, "uniform"),
    ],
)
def test_alarms_name_what_is_wrong(metrics: dict[str, float], word: str) -> None:
    healthy = {"cls_loss": 1.0, "cls_std": 0.6, "teacher_entropy": 0.9, "target_entropy": 0.5}
    assert alarms(healthy) == []
    assert any(word in line for line in alarms(healthy | metrics))
    assert alarms(metrics) == []
