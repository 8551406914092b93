"""Tasks as Slurm array jobs, by submitit: chunks of tasks, two arrays under way, results in order.

What submitit writes (tasks, results, output of jobs) lies in a private folder and goes as soon as
an array has been read.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from headct.engine.away import Away, Raised, opened
from headct.errors import HeadctError, UsageError
from headct.workers import one_thread_each

if TYPE_CHECKING:
    from headct.engine.choice import SlurmOptions

T = TypeVar("T")
R = TypeVar("R")

NAME = "headct"
MAX_CHUNK = 32
"""Tasks of a job at most: their results are held in memory together."""
ARRAYS_AHEAD = 2
STOPPED = ("TIMEOUT", "CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "REVOKED")
"""States of jobs that ended for no fault of a task."""


@dataclass(frozen=True)
class _Chunk(Generic[T]):
    """Tasks of one job, and the file that says that it began."""

    tasks: Sequence[T]
    mark: Path


@dataclass(frozen=True)
class _Array(Generic[T]):
    folder: Path
    chunks: list[_Chunk[T]]
    jobs: list[Any]


def run_as_jobs(
    function: Callable[[T], R],
    tasks: Sequence[T],
    folder: Path,
    slots: int,
    options: SlurmOptions,
    lost: Callable[[T], R],
    *,
    local: bool = False,
) -> Iterator[R]:
    """`function` of each task, in order.

    The tasks of a job that is killed are tried once more, each in a job of its own; one that kills
    it again becomes `lost(task)`.

    Args:
        function: without secrets: it is written to the folder.
        tasks: likewise.
        folder: private, on a disk that all machines see.
        slots: jobs at once.
        options: what a job asks for.
        lost: the result of a task that kills its job twice.
        local: jobs are processes of this machine.

    Raises:
        HeadctError: there is no Slurm, it refuses the jobs, ends them, or they cannot start.
    """
    send = _Sender(Away(function), folder, slots, options, local)
    size = options.chunk or min(MAX_CHUNK, -(-len(tasks) // (4 * slots)) or 1)
    step = size * slots
    parts = deque(tasks[start : start + step] for start in range(0, len(tasks), step))
    arrays: deque[_Array[T]] = deque()
    try:
        while parts or arrays:
            while parts and len(arrays) < ARRAYS_AHEAD:
                arrays.append(send.array(parts.popleft(), size))
            for number in range(len(arrays[0].chunks)):
                yield from send.results(arrays[0], number, lost)
            _clear(arrays.popleft())
    finally:
        for array in arrays:
            for job in array.jobs:
                if not job.done():
                    job.cancel()
            _clear(array)


def _clear(array: _Array[T]) -> None:
    """Leave nothing of an array; a local job still runs for a moment after its result is there."""
    for job in array.jobs:
        process = getattr(job, "_process", None)
        if process is not None:
            process.wait()
    shutil.rmtree(array.folder, ignore_errors=True)


def check_slurm(*, local: bool) -> None:
    """Look whether jobs can be sent.

    Raises:
        UsageError: submitit or Slurm is not there.
    """
    if find_spec("submitit") is None:
        raise UsageError("submitit is not installed", remedy="pip install 'headct[cluster]'")
    if not local and shutil.which("sbatch") is None:
        remedy = "run it on a login node; --engine slurm-local tries the jobs out here"
        raise UsageError("there is no Slurm here (no sbatch)", remedy=remedy)


class _Sender(Generic[T, R]):
    def __init__(
        self, function: Away[T, R], folder: Path, slots: int, options: SlurmOptions, local: bool
    ) -> None:
        self.work = _Work(function)
        self.folder, self.slots, self.options, self.local = folder, slots, options, local
        self.n_arrays = 0

    def array(self, tasks: Sequence[T], size: int) -> _Array[T]:
        """Submit one array."""
        folder = self.folder / f"array-{self.n_arrays:05d}"
        self.n_arrays += 1
        folder.mkdir(mode=0o700)
        chunks = [
            _Chunk(tasks[start : start + size], folder / f"began-{start:06d}")
            for start in range(0, len(tasks), size)
        ]
        executor = self._executor(folder)
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with one_thread_each():
                return _Array(folder, chunks, executor.map_array(self.work, chunks))
        except (FailedJobError, FailedSubmissionError) as error:
            told = [line for line in str(error).splitlines() if "error" in line]
            raise HeadctError(
                f"Slurm did not take the jobs ({told[0] if told else 'no reason given'})",
                code="slurm-submit",
                remedy="try `sbatch` with the same partition and options; the same command goes on",
            ) from error

    def _executor(self, folder: Path) -> Any:
        import submitit

        options = self.options
        executor = submitit.AutoExecutor(folder, cluster="local" if self.local else "slurm")
        executor.update_parameters(
            name=NAME, cpus_per_task=1, timeout_min=options.minutes, mem_gb=options.memory_gb
        )
        if not self.local:
            more = dict(_name_and_value(text) for text in options.more)
            executor.update_parameters(
                slurm_array_parallelism=self.slots,
                slurm_partition=options.partition,
                slurm_additional_parameters=more,
            )
        return executor

    def results(self, array: _Array[T], number: int, lost: Callable[[T], R]) -> Iterator[R]:
        """Results of one job of an array."""
        found = _result_of(array, number)
        if found is not None:
            yield from map(opened, found)
            return
        tasks = array.chunks[number].tasks
        for start in range(0, len(tasks), self.slots):
            alone = self.array(tasks[start : start + self.slots], 1)
            for i, chunk in enumerate(alone.chunks):
                again = _result_of(alone, i)
                yield lost(chunk.tasks[0]) if again is None else opened(again[0])
            _clear(alone)


@dataclass(frozen=True)
class _Work(Generic[T, R]):
    """What a job does."""

    function: Away[T, R]

    def __call__(self, chunk: _Chunk[T]) -> list[R | Raised]:
        chunk.mark.touch()
        return [self.function(task) for task in chunk.tasks]


def _result_of(array: _Array[T], number: int) -> list[Any] | None:
    """Results of a job; None where it was killed at its work.

    Raises:
        HeadctError: it could not start, or was ended for no fault of a task.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job, chunk = array.jobs[number], array.chunks[number]
    try:
        results: list[Any] = job.result()
        return results
    except FailedJobError as error:  # our function raises nothing: it could not even be loaded
        told = [line for line in str(error).splitlines() if "Error: " in line]
        cause = told[-1].split(":")[0] if told else "no reason given"
        remedy = "see that all machines have the same headct; the same command goes on"
    except UncompletedJobError:
        cause = str(job.state).split(" ")[0]
        if not cause.startswith(STOPPED) and chunk.mark.exists():
            return None
        remedy = "see `sacct`; give the jobs more time or memory, then the same command goes on"
    raise HeadctError(f"a job ended before its work: {cause}", code="slurm-job", remedy=remedy)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError("an option of sbatch is no name=value", remedy="e.g. account=radiology")
    return name.lstrip("-").replace("-", "_"), value
