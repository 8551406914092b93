"""Results in order; a process that dies costs its own task and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headct.workers import run_in_order


def square(n: int) -> int:
    return n * n


def deadly(n: int) -> int:
    if n == 3:
        os._exit(7)
    return n


def lost(n: int) -> int:
    return -n


def threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


@pytest.mark.parametrize("jobs", [0, 2])
def test_results_come_in_the_order_of_the_tasks(jobs: int) -> None:
    assert list(run_in_order(square, range(20), jobs, lost)) == [n * n for n in range(20)]


def test_a_task_that_kills_its_process_is_reported_and_the_rest_is_done() -> None:
    assert list(run_in_order(deadly, range(9), 1, lost)) == [0, 1, 2, -3, 4, 5, 6, 7, 8]


def test_workers_take_one_thread_and_the_environment_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(run_in_order(threads, [0], 1, str)) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
