"""`headct predict`: scores of new scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from headct.serve.predictor import Answer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("predict")(predict)


def predict(
    paths: Annotated[list[Path], typer.Argument(help="Folders or files: DICOM, NIfTI.")],
    task: Annotated[Path, typer.Option(help="TASK of `headct probe`, `fewshot` or `finetune`.")],
    bundle: Annotated[
        Path | None, typer.Option(help="BUNDLE of a probe; a fine-tuned task has its own.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of tables.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; default as in `headct ingest`.")
    ] = None,
    criteria: Annotated[
        Path | None, typer.Option(help="TOML file: what is refused, as in `headct ingest`.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Default: a GPU where there is one.")
    ] = None,
) -> None:
    """Score scans with a task: the same checks, grid and head as in its evaluation.

    Research use only. What cannot be read is answered as "not analysed" with the reason; a finding
    that is not called is not ruled out. Answers come path by path. Exit code 1 where something
    that could be a scan was not analysed.

    \b
    Example: headct predict scan_folder --bundle run/bundle --task task-probe
    For programs: headct predict scan.nii.gz --task task-finetune --json
    """  # noqa: D301
    from headct.ingest.criteria import load_criteria
    from headct.model.device import choose_device
    from headct.serve.predictor import load_predictor, to_json, was_skipped

    limits, where = load_criteria(criteria), choose_device(device)
    predictor = load_predictor(task, bundle, key_file=key, criteria=limits, device=where)
    about = predictor.about()
    complete = True
    for answer in predictor.predict(paths):
        complete &= answer.status == "analysed" or was_skipped(answer)
        if as_json:
            print(json.dumps(to_json(answer, about), allow_nan=False), flush=True)
        else:
            _show(answer)
    if not as_json:
        print(f"{about['scope']}")
        print(
            f"method {about['method']}, bundle {about['bundle_hash'] or 'none'}, "
            f"preprocessing {about['preprocessing_hash']}, headct {about['headct']}"
        )
    if not complete:
        raise typer.Exit(1)


def _where(answer: Answer) -> str:
    return f"{answer.source} (path {answer.path_number})"


def _show(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if answer.status != "analysed":
        console.print(
            f"{_where(answer)}: not analysed [{answer.reason}]: {answer.message}", markup=False
        )
        return
    table = Table(
        "finding",
        title=f"{answer.scan_id} (path {answer.path_number})",
        title_justify="left",
        box=None,
    )
    table.add_column("score", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column("")
    for found in sorted(answer.findings, key=lambda found: -found.score):
        threshold = "none" if found.threshold is None else f"{found.threshold:.3f}"
        called = "above threshold" if found.called else ""
        table.add_row(found.finding, f"{found.score:.3f}", threshold, called)
    console.print(table)
    for code, meaning in answer.warnings:
        console.print(f"  warning [{code}]: {meaning}", markup=False)
