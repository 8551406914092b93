"""Memory of views that are gone serves those that come, and of no others."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from headct.views import memory
from headct.views.memory import reused


@pytest.fixture(autouse=True)
def nothing_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_spare", deque(maxlen=3))


def test_memory_serves_again_once_nothing_uses_it() -> None:
    views = reused(2, 3, 4)
    assert views.dtype == torch.float32
    assert views.shape == (2, 3, 4)
    place, part = views.data_ptr(), views[1, :2]
    part.fill_(7.0)
    del views
    other = reused(2, 3, 4).fill_(0.0)
    assert other.data_ptr() != place
    assert (part == 7.0).all()
    del part
    assert reused(3, 4).data_ptr() == place  # smaller ones too


def test_memory_that_does_not_fit_stays_for_others() -> None:
    large, small = reused(1000), reused(10)
    places = large.data_ptr(), small.data_ptr()
    del large, small
    assert reused(20).data_ptr() not in places  # too small, and far too large
    assert reused(10).data_ptr() == places[1]
    assert reused(900).data_ptr() == places[0]


def test_no_more_is_kept_than_a_batch_needs() -> None:
    many = [reused(100) for _ in range(10)]
    del many
    assert len(memory._spare) == 3
    assert reused(0, 5).shape == (0, 5)
