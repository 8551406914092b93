"""The choice of an engine: one way to call all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

from headct.errors import UsageError
from headct.workers import cores, run_in_order, worker_died

T = TypeVar("T")
R = TypeVar("R")

Kind = Literal["local", "ray", "slurm", "slurm-local"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SLURM_JOBS = 16
"""Jobs at once where the user does not say."""


@dataclass(frozen=True)
class SlurmOptions:
    """What a job asks Slurm for.

    Attributes:
        partition: none takes the default of the cluster.
        minutes: time limit of a job, which does `chunk` tasks at most.
        memory_gb: of a job.
        more: further options of sbatch, as name=value.
        chunk: tasks of a job; None lets their number decide.
    """

    partition: str | None = None
    minutes: int = 240
    memory_gb: float = 4.0
    more: tuple[str, ...] = ()
    chunk: int | None = None


@dataclass(frozen=True)
class Engine:
    """Where tasks run.

    Attributes:
        kind: `local`, processes of this machine; `ray`, on a cluster that is there; `slurm`, as
            array jobs; `slurm-local`, the same jobs as processes here, to try them out.
        jobs: tasks at once; None for all cores, 0 to run processes' tasks in this process.
        ray_address: None for $RAY_ADDRESS or the cluster of this machine.
        slurm: what its jobs ask for.
    """

    kind: Kind = "local"
    jobs: int | None = None
    ray_address: str | None = None
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    @property
    def is_away(self) -> bool:
        """Whether tasks may run on other machines, which see only shared disks."""
        return self.kind in ("ray", "slurm")

    @property
    def talks_by_files(self) -> bool:
        """Whether tasks and results go over a shared disk."""
        return self.kind == "slurm"

    @property
    def local_jobs(self) -> int:
        """Processes for what is done on this machine in any case."""
        return self.jobs if self.jobs is not None and not self.is_away else cores()

    @property
    def slots(self) -> int:
        """Tasks at once, as far as it is known before an engine starts."""
        return self.jobs or (SLURM_JOBS if self.kind == "slurm" else cores())

    def check(self) -> None:
        """Look whether the engine is there, before anything else is done.

        Raises:
            HeadctError: it is not.
        """
        if self.kind == "ray":
            from headct.engine.ray_tasks import check_ray

            check_ray(self.ray_address)
        elif self.kind != "local":
            from headct.engine.job_arrays import check_slurm

            check_slurm(local=self.kind == "slurm-local")

    def run_in_order(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        *,
        folder: Path | None = None,
        lost: Callable[[T], R] = worker_died,
    ) -> Iterator[R]:
        """`function` of each task, in the order of the tasks, whatever the engine.

        Args:
            function: a pure function that can be pickled; for `ray` and `slurm` it is written to
                memory or disk of other machines, so that it must not hold secrets.
            tasks: what to run.
            folder: private folder on a disk that all machines see; Slurm's jobs need it.
            lost: the result of a task that kills its worker twice; by default an error.

        Raises:
            HeadctError: the engine is not there, or its workers cannot start.
        """
        if self.kind == "local":
            return run_in_order(function, tasks, cores() if self.jobs is None else self.jobs, lost)
        if self.kind == "ray":
            from headct.engine.ray_tasks import run_on_ray

            return run_on_ray(function, tasks, self.ray_address, self.jobs, lost)
        from headct.engine.job_arrays import run_as_jobs

        if folder is None:
            raise UsageError("jobs need a private folder on a shared disk", remedy="give --work")
        local = self.kind == "slurm-local"
        return run_as_jobs(function, tasks, folder, self.slots, self.slurm, lost, local=local)


def require_kind(name: str) -> Kind:
    """An engine's name.

    Raises:
        UsageError: there is none of that name.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise UsageError(f"no engine named {name!r}", remedy=f"one of: {', '.join(KINDS)}")
