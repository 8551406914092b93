"""A run as a job of Slurm, by submitit: asked to stop it saves, queues itself again, goes on."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headct.errors import UsageError

Cluster = Literal["slurm", "local"]
MAX_TIMEOUTS = 1000
"""How often a job may reach its time limit and be queued again."""
SIGNAL_BEFORE_S = 180
"""Seconds before the time limit at which Slurm says so: the step ends and a checkpoint is made."""


@dataclass(frozen=True)
class Resources:
    """What a job asks for.

    Attributes:
        nodes: machines.
        gpus: of each node.
        tasks: ranks on each node; None: one for each GPU, or one.
        minutes: time limit; a run that is longer goes on in the next turn.
        partition: of the cluster; None: its default.
        cpus: of each rank.
    """

    nodes: int = 1
    gpus: int = 0
    tasks: int | None = None
    minutes: int = 24 * 60
    partition: str | None = None
    cpus: int = 4

    def __post_init__(self) -> None:
        if self.gpus and self.tasks_per_node > self.gpus:
            raise UsageError(
                f"{self.tasks_per_node} ranks on each machine do not share {self.gpus} GPUs",
                remedy="leave --tasks out: one rank for each of --gpus",
            )

    @property
    def tasks_per_node(self) -> int:
        """Ranks on each node."""
        return self.tasks or max(1, self.gpus)

    @property
    def n_ranks(self) -> int:
        """Ranks of the job."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Job:
    """What every rank of a job calls.

    Attributes:
        work: trains, or goes on; says whether it was asked to stop before the end.
    """

    work: Callable[[], bool]

    def __call__(self) -> None:
        """Join the other ranks, work, and where it was stopped, come back later."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        if self.work():
            # all ranks have saved; submitit's own handler queues the job again, from rank 0
            signal.raise_signal(signal.SIGUSR2)
        else:
            atexit.register(_remove_pickles, JobEnvironment().paths)

    def checkpoint(self) -> Any:
        """What submitit runs when it is the job's turn again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _remove_pickles(paths: Any) -> None:
    """Of a run that is finished; until then Slurm may start the job again from its file.

    Only as the process ends, since submitit writes the result, a None, after the work.
    """
    paths.submitted_pickle.unlink(missing_ok=True)
    paths.result_pickle.unlink(missing_ok=True)


def submit(work: Callable[[], bool], folder: Path, cluster: Cluster, resources: Resources) -> str:
    """Hand a job over and leave.

    Args:
        work: as in `Job`; must pickle, as submitit hands it to the job in a file of `folder`.
        folder: for logs and what submitit keeps.
        cluster: slurm, or processes of this machine.
        resources: what the job asks for.

    Returns:
        Its id.

    Raises:
        UsageError: submitit or Slurm is missing, or the cluster refuses the job.
    """
    try:
        import submitit
    except ImportError as error:
        raise UsageError("submitit is not installed", remedy="pip install 'headct[cluster]'") from (
            error
        )
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, **{f"{cluster}_max_num_timeout": MAX_TIMEOUTS}
        )
        executor.update_parameters(
            name="headct-pretrain",
            nodes=resources.nodes,
            tasks_per_node=resources.tasks_per_node,
            gpus_per_node=resources.gpus,
            cpus_per_task=resources.cpus,
            timeout_min=resources.minutes,
            stderr_to_stdout=True,
            **_of_cluster(cluster, resources),
        )
        return str(executor.submit(Job(work)).job_id)
    except (RuntimeError, ValueError, submitit.core.utils.FailedJobError) as error:
        raise UsageError(
            f"{cluster} does not take the job: {error}",
            remedy="check that sbatch is here, and --partition, --gpus, --nodes",
        ) from error


def _of_cluster(cluster: Cluster, resources: Resources) -> dict[str, Any]:
    if cluster == "local":
        return {}
    parameters: dict[str, Any] = {"slurm_signal_delay_s": SIGNAL_BEFORE_S}
    if resources.partition:
        parameters["slurm_partition"] = resources.partition
    return parameters
