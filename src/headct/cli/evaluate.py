"""`headct evaluate` and `headct report`: predictions -> numbers -> one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("evaluate")(evaluate)
    app.command("report")(report)


def evaluate(
    tasks: Annotated[list[Path], typer.Argument(help="TASK folders, compared with each other.")],
    out: Annotated[Path, typer.Option(help="EVAL folder; made, or replaced.")],
    store: Annotated[
        Path | None, typer.Option(help="STORE of the scans: subgroups by age, sex, scanner, ...")
    ] = None,
    n_boot: Annotated[int, typer.Option(min=0, help="Resamples of patients.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    min_positives: Annotated[
        int, typer.Option(min=1, help="Fewest positives for a finding to count in the macro mean.")
    ] = 10,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="A:B, test whether method A is better than B; can be given again. "
            "Default: pretrained methods against each other and against every floor."
        ),
    ] = None,
) -> None:
    """Score tasks on their test patients, per finding and site, and compare them.

    Intervals resample patients. Thresholds are those of each task, fixed on tune patients. A
    missing score, a case counted twice or a patient in two splits is an error.

    \b
    Example: headct evaluate task-finetune task-scratch task-histogram --out eval
    Subgroups: headct evaluate task-finetune task-histogram --store store --out eval
    One question: headct evaluate TASKS... --compare finetune:scratch-vit --out eval
    """  # noqa: D301
    pairs = tuple(_pair(text) for text in compare or ())
    from headct.evaluate.evaluation import EvaluationConfig
    from headct.evaluate.evaluation import evaluate as run

    config = EvaluationConfig(n_boot=n_boot, seed=seed, min_positives=min_positives, compare=pairs)
    run(tasks, out, config, store)
    from headct.evaluate.headline import lead_method, opening
    from headct.evaluate.results import read_results

    results = read_results(out)
    print(opening(results, lead_method(results)))
    print(f"tables in {out / 'tables'}; next: headct report {out} --out report.html")


def _pair(text: str) -> tuple[str, str]:
    a, colon, b = text.partition(":")
    if not (a and colon and b):
        raise UsageError(
            f"--compare wants A:B, not {text!r}", remedy="e.g. --compare finetune:scratch-vit"
        )
    return a, b


def report(
    evaluation: Annotated[Path, typer.Argument(help="EVAL folder.", metavar="EVAL")],
    out: Annotated[Path, typer.Option(help="The HTML file; made, or replaced.")],
    store: Annotated[
        Path | None, typer.Option(help="STORE: the account of ingest; with --task attention maps.")
    ] = None,
    task: Annotated[Path | None, typer.Option(help="TASK whose attention is shown.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="BUNDLE, where the task is a probe on it.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="RUN of pretraining: curves, panels.")] = None,
) -> None:
    """Write one HTML page: answers, tables, plots, attention maps, refused input, limits.

    The page needs no network and no other file.

    \b
    Example: headct report eval --store store --task task-finetune --run run --out report.html
    """  # noqa: D301
    from headct.evaluate.report import Sources, write_report

    if task is not None and store is None:
        raise UsageError("attention maps need scans", remedy="give --store beside --task")
    write_report(evaluation, out, Sources(store, task, bundle, run))
    print(out)
