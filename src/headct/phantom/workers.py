"""Pure jobs on several processes, results in order; if interrupted or killed, no worker stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_AHEAD = 4
"""Jobs per worker that wait or run: keeps workers busy and memory small."""
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


def in_order(
    function: Callable[[Job], Result], jobs: Iterable[Job], n_workers: int
) -> Iterator[Result]:
    """`function` of each job, in the order of the jobs.

    Args:
        function: a pure function at module level; it must not depend on which process runs it.
        jobs: taken as workers become free.
        n_workers: processes, one thread each; with 1 everything runs in this process.
    """
    if n_workers == 1:
        yield from map(function, jobs)
        return
    with _one_thread_each(), _pool(n_workers) as pool:
        yield from _windowed(pool, function, iter(jobs), n_workers * JOBS_AHEAD)


def _windowed(
    pool: ProcessPoolExecutor, function: Callable[[Job], Result], jobs: Iterator[Job], ahead: int
) -> Iterator[Result]:
    running: deque[Future[Result]] = deque(
        pool.submit(function, job) for job in islice(jobs, ahead)
    )
    while running:
        result = running.popleft().result()
        running.extend(pool.submit(function, job) for job in islice(jobs, 1))
        yield result


@contextmanager
def _pool(n_workers: int) -> Iterator[ProcessPoolExecutor]:
    # spawn: a forked child would inherit locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n_workers, context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers inherit the environment; their libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; where the parent is killed, the worker ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
