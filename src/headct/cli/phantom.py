"""`headct phantom`: a synthetic archive of two hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from headct.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("phantom")(phantom)


def phantom(
    out: Annotated[Path, typer.Option(help="Folder of the archive; made or gone on with.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="TOML file of a preset of your own.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, demo, canonical, base or hard.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value; can be given again.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=N.")] = None,
    output: Annotated[
        Literal["dicom", "nifti", "store"] | None,
        typer.Option(help="Labelled scans as DICOM, as NIfTI, or straight into a store."),
    ] = None,
    repeat_scanner: Annotated[
        bool,
        typer.Option(help="Scan test patients of the first site at the second, too: paired scans."),
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
) -> None:
    """Make an archive of synthetic head CT: DICOM series, labels, truth, and an unlabelled pool.

    The same recipe and seed give the same archive, byte for byte. Interrupted, the same command
    goes on where it stopped.

    \b
    Example: headct phantom --preset demo --out archive
    Smaller: headct phantom --preset demo --set n_train=20 --set n_pool=50 --out small
    No files in between: headct phantom --preset tiny --output store --out quick
    """  # noqa: D301
    if (recipe is None) == (preset is None):
        raise UsageError("give a RECIPE or --preset, one of them", remedy="e.g. --preset demo")
    from headct.phantom.archive import write_archive
    from headct.phantom.profile import load_preset
    from headct.workers import cores

    settings = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    settings += [] if output is None else [f"output={output}"]
    settings += ["rescanned_fraction=1"] if repeat_scanner else []
    loaded = load_preset(recipe or str(preset), settings)
    summary = write_archive(loaded, out, jobs or cores())
    print(summary)
