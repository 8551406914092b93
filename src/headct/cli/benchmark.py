"""`headct benchmark`: encoders x methods x labels x seeds, resumable, into one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.cli.cluster import (
    EngineKind,
    RayAddress,
    SlurmMinutes,
    SlurmPartition,
    SlurmSet,
    chosen_engine,
)

JOB_MEMORY_GB = 16.0


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("benchmark")(benchmark)


def benchmark(
    spec: Annotated[Path, typer.Argument(help="TOML file, see docs/how-to/benchmark.md.")],
    out: Annotated[Path, typer.Option(help="BENCH folder; one that is there is gone on with.")],
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Tasks side by side; default: one per core.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the tasks and stop.")] = False,
    engine: EngineKind = "local",
    ray_address: RayAddress = None,
    slurm_partition: SlurmPartition = None,
    slurm_minutes: SlurmMinutes = 240,
    slurm_set: SlurmSet = None,
) -> None:
    """Make every task of a matrix, evaluate them together, and write one tidy table.

    Tasks that are done are not made again unless their encoder, labels, settings or store changed.
    A task that cannot be made (too few positives, say) is named at the end; the others count.

    \b
    Example: headct benchmark spec.toml --out bench --jobs 2
    Report:  headct report bench --out bench.html
    Slurm:   headct benchmark spec.toml --out bench --engine slurm --jobs 64
             --slurm-partition gpu --slurm-set gres=gpu:1
    """  # noqa: D301
    from headct.benchmark.matrix import run_matrix
    from headct.benchmark.results import TABLE, eval_folder, write_results
    from headct.benchmark.spec import load_spec
    from headct.evaluate.comparisons import MACRO

    wanted = load_spec(spec)
    if dry_run:
        for job in wanted.jobs():
            print(job.name)
        return
    where = chosen_engine(
        engine,
        jobs,
        ray_address,
        (slurm_partition, slurm_minutes, slurm_set),
        memory_gb=JOB_MEMORY_GB,
        chunk=1,
    )
    failed = run_matrix(wanted, out, where)
    for one in failed:
        typer.echo(f"not done: {one.job} [{one.code}]: {one.message}", err=True)
    rows = write_results(wanted, out, failed)
    for row in rows:
        if row["seed"] is None and (row["finding"], row["metric"]) == (MACRO, "auroc"):
            labels = f"K {row['k']}" if row["k"] else f"{row['n_train']} labels"
            name = f"{row['encoder'] or 'new weights'} / {row['method']}"
            interval = f"[{row['lo']:.3f}, {row['hi']:.3f}]"
            place = f"{row['trained_at']} > " if row["trained_at"] else ""
            print(f"{name:40} {labels:>12}  {place}{row['site']:14} {row['value']:.3f} {interval}")
    first = eval_folder(out, (wanted.train_sites or ("",))[0])
    print(f"{len(rows)} rows in {out / TABLE}; next: headct report {first} --out bench.html")
    if failed:
        raise typer.Exit(1)
