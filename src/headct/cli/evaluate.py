"""`headct evaluate` and `headct report`: predictions -> numbers -> one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headct.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("evaluate")(evaluate)
    app.command("explain")(explain)
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


def explain(
    store: Annotated[Path, typer.Argument(help="STORE of the scans.")],
    task: Annotated[Path, typer.Option(help="TASK: a probe on an encoder, or a fine-tuned one.")],
    out: Annotated[Path, typer.Option(help="Folder for maps and pictures.")],
    bundle: Annotated[
        Path | None, typer.Option(help="BUNDLE, where the task is a probe on it.")
    ] = None,
    findings: Annotated[
        str | None, typer.Option(help="Only these, e.g. sdh,iph; default: all of the task.")
    ] = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(help="SCAN_ID; can be given again. Default: test scans with the finding."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Scans per finding, highest scores first.")] = 8,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of masks: NAME_FINDING.nii.gz, or truth/masks of a phantom."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key of ingest, for masks named by the study's UID.")
    ] = None,
) -> None:
    """Write what a task looked at: attention maps as NIfTI in scan space, and pictures.

    With masks it also plays the pointing game (is the peak of the map on the lesion?) and measures
    the overlap of the top of the map with the lesion, beside what chance would give.

    \b
    Example: headct explain store --task task-finetune --findings sdh --out maps
    Phantom: headct explain store --task task --masks archive/truth/masks --out maps
    """  # noqa: D301
    from headct.dicom.pseudonym import Pseudonymizer, load_key
    from headct.evaluate.explain import Masks
    from headct.evaluate.explain import explain as run
    from headct.store.store import open_store

    where = None
    if masks is not None:
        if not masks.is_dir():
            raise UsageError(f"there is no folder {masks.name!r}", remedy="give one to --masks")
        uids = [path.stem for path in masks.glob("*.npz")]
        names = Pseudonymizer(load_key(key)) if uids else None
        where = Masks(masks, {names.study_id(uid): uid for uid in uids} if names else {})
    wanted = tuple(findings.split(",")) if findings else ()
    summary = run(
        open_store(store),
        task,
        bundle,
        out,
        findings=wanted,
        scan_ids=scan or (),
        n_scans=n,
        masks=where,
    )
    for row in summary:
        print(
            f"{row['finding']:16} {row['map']:10} n {row['n']:3}  hit {row['hit']:.2f} "
            f"[{row['hit_lo']:.2f}, {row['hit_hi']:.2f}], chance {row['chance_hit']:.2f}  "
            f"Dice {row['dice']:.3f}, chance {row['chance_dice']:.3f}"
        )
    if masks is not None and not summary:
        raise UsageError("no mask belongs to one of the scans", remedy="check --masks and --key")
    print(out)


def _pair(text: str) -> tuple[str, str]:
    a, colon, b = text.partition(":")
    if not (a and colon and b):
        raise UsageError(
            f"--compare wants A:B, not {text!r}", remedy="e.g. --compare finetune:scratch-vit"
        )
    return a, b


def report(
    evaluation: Annotated[Path, typer.Argument(help="EVAL folder.", metavar="EVAL")],
    out: Annotated[
        Path, typer.Option(help="The HTML file; made, or replaced where it is a report.")
    ],
    store: Annotated[
        Path | None, typer.Option(help="STORE: the account of ingest; with --task attention maps.")
    ] = None,
    task: Annotated[Path | None, typer.Option(help="TASK whose attention is shown.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="BUNDLE, where the task is a probe on it.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="RUN of pretraining: curves, panels.")] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="Folder of `headct explain --masks`: do maps point at the lesion?"),
    ] = None,
    checklist: Annotated[
        Path | None,
        typer.Option(help="Markdown: CLAIM and TRIPOD+AI, for you to complete; never replaced."),
    ] = None,
) -> None:
    """Write one HTML page: answers, tables, plots, attention maps, refused input, limits.

    The page needs no network and no other file.

    \b
    Example: headct report eval --store store --task task-finetune --run run --out report.html
    For a paper: headct report eval --store store --out report.html --checklist checklist.md
    """  # noqa: D301
    from headct.evaluate.report import Sources, write_report

    if task is not None and store is None:
        raise UsageError("attention maps need scans", remedy="give --store beside --task")
    write_report(evaluation, out, Sources(store, task, bundle, run, maps), checklist)
    print(out)
