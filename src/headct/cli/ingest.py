"""`headct ingest`: any archive -> a store of canonical head CT volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.ingest.pipeline import Tally
    from headct.volume.preprocessing import Preprocessing


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ingest")(ingest)


def ingest(
    sources: Annotated[
        list[Path], typer.Argument(help="Folders or files: DICOM, NIfTI, zip, tar.")
    ],
    out: Annotated[Path, typer.Option(help="The store; made, or added to.")],
    grid: Annotated[str, typer.Option(help="Canonical grid: demo, small or base.")] = "base",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Grid key=value, e.g. spacing_mm_zyx=[4,1,1]; repeatable."),
    ] = None,
    criteria: Annotated[
        Path | None, typer.Option(help="TOML file: what is refused, flagged, accepted.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Key of the pseudonyms; default $HEADCT_KEY_FILE or ~/.config/headct."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Name of the hospital, for the manifest.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Private folder for what archives hold; default: $TMPDIR. Emptied."),
    ] = None,
    deface: Annotated[
        bool,
        typer.Option("--deface/--no-deface", help="Defacing is not there yet: only --no-deface."),
    ] = False,
) -> None:
    """Turn a raw archive into a store: right head CT volumes in, everything else with a reason.

    Interrupted, the same command goes on; a second run changes nothing. Exit code 1 means that
    some inputs were refused: see STORE/summary.html and STORE/items.jsonl.

    \b
    Example: headct ingest archive/dicom --out store --grid demo
    More:    headct ingest /data/ct scan.nii.gz --out store --jobs 16 --criteria criteria.toml
    """  # noqa: D301
    if deface:
        raise UsageError("defacing is not there yet", remedy="leave --deface out")
    from headct.ingest.criteria import load_criteria
    from headct.ingest.pipeline import ingest as run

    tally = run(
        sources,
        out,
        _preprocessing(grid, overrides or []),
        load_criteria(criteria),
        jobs=jobs,
        key_file=key,
        site=site,
        work=work,
    )
    _print(tally, out)
    if tally.statuses["refused"]:
        raise typer.Exit(1)


def _preprocessing(grid: str, overrides: list[str]) -> Preprocessing:
    from headct.config import apply_overrides, check
    from headct.volume.preprocessing import PRESETS, Preprocessing

    if grid not in PRESETS:
        raise UsageError(f"no grid named {grid!r}", remedy=f"one of: {', '.join(PRESETS)}")
    values = PRESETS[grid].model_dump(exclude={"hash"})
    apply_overrides(values, overrides)
    return check(values, Preprocessing, f"the grid {grid}")


def _print(tally: Tally, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("state", "reason", "number", box=None)
    for (status, reason), n in sorted(tally.reasons.items()):
        table.add_row(status, reason, str(n))
    console = Console()
    console.print(table)
    known = f" ({tally.n_known} of them known from before)" if tally.n_known else ""
    console.print(f"{tally.n_seen} seen = {tally}{known}", highlight=False)
    console.print(f"store: {out}, summary: {out / 'summary.html'}", highlight=False, soft_wrap=True)
