"""Options of verbs whose tasks can run on a cluster, and the engine that they choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headct.engine.choice import Engine

PANEL = "On a cluster"

EngineKind = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where the work is done: local, ray, slurm; slurm-local tries jobs out here.",
        rich_help_panel=PANEL,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="The cluster; default $RAY_ADDRESS or here.", rich_help_panel=PANEL),
]
SlurmPartition = Annotated[
    str | None, typer.Option(help="Partition of the jobs.", rich_help_panel=PANEL)
]
SlurmMinutes = Annotated[
    int, typer.Option(min=1, help="Time limit of a job.", rich_help_panel=PANEL)
]
SlurmSet = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of sbatch, e.g. account=radiology; repeatable.", rich_help_panel=PANEL
    ),
]


def chosen_engine(
    kind: str,
    jobs: int | None,
    ray_address: str | None,
    slurm: tuple[str | None, int, Sequence[str] | None],
    *,
    memory_gb: float = 4.0,
    chunk: int | None = None,
) -> Engine:
    """The engine that the options name.

    Args:
        kind: local, ray, slurm or slurm-local.
        jobs: tasks at once.
        ray_address: of the cluster.
        slurm: partition, minutes, and options of sbatch.
        memory_gb: of a Slurm job.
        chunk: tasks of a Slurm job; None lets their number decide.

    Raises:
        UsageError: no such engine.
    """
    from headct.engine.choice import Engine, SlurmOptions, require_kind

    partition, minutes, more = slurm
    options = SlurmOptions(partition, minutes, memory_gb, tuple(more or ()), chunk)
    return Engine(require_kind(kind), jobs, ray_address, options)
