"""Tasks on several processes, results in the order of the tasks, and no hang when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import wait
from typing import NoReturn, TypeVar

from threadpoolctl import ThreadpoolController

from headct.errors import HeadctError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Tasks per worker that run or wait: enough to keep them busy, few enough for the memory."""
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_died(_task: object) -> NoReturn:
    """What to do with a lost task where nothing better is known."""
    raise HeadctError(
        "a worker process was killed twice on the same task (out of memory?)",
        code="worker-died",
        remedy="give it more memory, or fewer --jobs; the same command goes on",
    )


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """As in a worker: the last bit of a matrix product depends on the number of threads."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def run_in_order(
    function: Callable[[T], R],
    tasks: Sequence[T],
    jobs: int,
    lost: Callable[[T], R] = worker_died,
) -> Iterator[R]:
    """`function` of each task, in the order of the tasks.

    Where a worker dies, the tasks that were under way are tried once more, each alone in a process;
    one that kills its process again becomes `lost(task)`.

    Args:
        function: a pure function that can be pickled.
        tasks: what to run.
        jobs: processes of one thread each; 0 runs everything in this process.
        lost: the result of a task that kills its worker; by default an error.
    """
    if jobs == 0:
        for task in tasks:
            with one_blas_thread():
                result = function(task)
            yield result
        return
    done = 0
    with one_thread_each():
        while done < len(tasks):
            try:
                with _pool(jobs) as pool:
                    for result in _windowed(pool, function, tasks[done:], jobs * AHEAD):
                        yield result
                        done += 1
            except BrokenProcessPool:
                for task in tasks[done : done + jobs * AHEAD]:
                    yield _alone(function, task, lost)
                    done += 1


def _windowed(
    pool: ProcessPoolExecutor, function: Callable[[T], R], tasks: Sequence[T], ahead: int
) -> Iterator[R]:
    running: deque[Future[R]] = deque(pool.submit(function, task) for task in tasks[:ahead])
    for task in tasks[ahead:]:
        yield running.popleft().result()
        running.append(pool.submit(function, task))
    while running:
        yield running.popleft().result()


def _alone(function: Callable[[T], R], task: T, lost: Callable[[T], R]) -> R:
    try:
        with _pool(1) as pool:
            return pool.submit(function, task).result()
    except BrokenProcessPool:
        return lost(task)


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    # spawn: a forked child would inherit locks of threads that it does not have
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; where the parent is killed, the worker ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Workers inherit the environment; their libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
