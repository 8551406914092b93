"""Results in order; a process that dies costs its own task and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
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


def product(seed: int) -> bytes:
    numbers = np.random.default_rng(seed).standard_normal((3, 300, 300), dtype=np.float32)
    return ((numbers[0] @ numbers[1]) @ numbers[2]).tobytes()


def test_a_matrix_product_has_the_same_last_bit_here_and_in_a_worker() -> None:
    assert list(run_in_order(product, range(4), 0)) == list(run_in_order(product, range(4), 1))
