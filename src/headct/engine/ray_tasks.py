"""Tasks on a Ray cluster that is there already."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from headct.engine.away import Away, opened
from headct.errors import HeadctError, UsageError
from headct.workers import AHEAD

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 1
CONNECT_S = 5.0


def run_on_ray(
    function: Callable[[T], R],
    tasks: Sequence[T],
    address: str | None,
    slots: int | None,
    lost: Callable[[T], R],
) -> Iterator[R]:
    """`function` of each task, in order; a task is one core for Ray.

    Args:
        function: without secrets: it goes into Ray's object store.
        tasks: likewise.
        address: of the cluster; None for $RAY_ADDRESS or the one of this machine.
        slots: tasks at once; None for twice the cluster's cores, so that none waits for us.
        lost: the result of a task that kills its worker twice.

    Raises:
        HeadctError: no cluster there, or its workers cannot run our code.
    """
    if not tasks:
        return
    with _connected(address) as ray:
        slots = slots or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        options = {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        remote = ray.remote(**options)(_call)
        sent = ray.put(Away(function))
        window: deque[tuple[T, Any]] = deque()
        running: list[Any] = []
        waiting = iter(tasks)
        n_left = len(tasks)
        try:
            while n_left or window:
                while n_left and len(running) < slots and len(window) < slots * AHEAD:
                    task = next(waiting)
                    running.append(remote.remote(sent, task))
                    window.append((task, running[-1]))
                    n_left -= 1
                if window[0][1] in running:
                    _, running = ray.wait(running, num_returns=1)
                    continue
                task, reference = window.popleft()
                yield _result(ray, task, reference, lost)
        finally:
            for reference in running:
                ray.cancel(reference)


def check_ray(address: str | None) -> None:
    """Look whether the cluster is there.

    Raises:
        HeadctError: it is not, or Ray is not installed.
    """
    with _connected(address):
        return


def _call(function: Away[T, R], task: T) -> Any:
    return function(task)


def _result(ray: Any, task: T, reference: Any, lost: Callable[[T], R]) -> R:
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
    try:
        result: R = opened(ray.get(reference))
    except died:
        return lost(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise HeadctError(
            f"a task was lost on the Ray cluster ({type(cause).__name__})",
            code="ray-task",
            remedy="see that all its machines have the same headct; the same command goes on",
        ) from None
    return result


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("Ray is not installed", remedy="pip install 'headct[cluster]'") from error
    if ray.is_initialized():  # a caller's own connection stays open
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(where)
        # the output of workers stays with them: a library's warning can quote a header
        ray.init(address=where, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        raise HeadctError(
            "there is no Ray cluster at that address" if address else "there is no Ray cluster",
            code="ray-cluster",
            remedy="start one with `ray start --head`, or give --ray-address HOST:PORT",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(where: str) -> None:
    """Connect once, since Ray itself tries for many minutes.

    Raises:
        OSError: nobody answers at HOST:PORT.
        ValueError: the port is no number.
    """
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
