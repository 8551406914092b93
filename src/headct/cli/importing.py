"""`headct import`: weights of other authors -> a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Grid(StrEnum):
    """How the input of FM-CT is made."""

    fmct = "fmct"
    fmct_hu = "fmct-hu"


commands = typer.Typer(
    help="Turn encoders of other authors into bundles.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(commands, name="import")


@commands.callback()
def _verb() -> None:
    """Keep the name of the layout as a word of its own."""


@commands.command("fmct")
def fmct(
    weights: Annotated[Path, typer.Argument(help="Checkpoint of FM-CT (torch or safetensors).")],
    out: Annotated[Path, typer.Option(help="BUNDLE to write.")],
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; default: of 64 numbers, else 12.")
    ] = None,
    grid: Annotated[
        Grid, typer.Option(help="fmct: its input exactly, a series at a time; fmct-hu: for stores.")
    ] = Grid.fmct,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the preprocessing, as your weights were trained."),
    ] = None,
) -> None:
    """Turn FM-CT weights, which you have under its authors' agreement, into a bundle.

    The file is read without running anything in it; wrappers such as `module.` and `backbone.`
    come off, heads and decoders are left out. The bundle makes its input as FM-CT does, and
    `load_bundle(BUNDLE).embed("folder or file")` embeds a series. On the grid fmct-hu windows come
    after the stretch (docs/decisions/0024), and every verb that takes a store takes the bundle.

    \b
    Example: headct import fmct weights.pt --out fmct-bundle
    For stores: headct import fmct weights.pt --grid fmct-hu --out fmct-bundle
    Another pipeline: headct import fmct weights.pt --set stretched.resize=linear --out fmct-bundle
    Other sizes: headct import fmct weights.pt --set shape_zyx=[48,96,96] --out fmct-bundle
    """  # noqa: D301
    from headct.config import apply_overrides, check
    from headct.model.fmct import import_fmct
    from headct.volume.preprocessing import PRESETS, Preprocessing

    values = PRESETS[grid].model_dump(mode="json", exclude={"hash"})
    apply_overrides(values, settings or ())
    preprocessing = check(values, Preprocessing, f"the grid {grid}")
    bundle = import_fmct(weights, out, heads, preprocessing)
    shape = " x ".join(map(str, bundle.preprocessing.shape_zyx))
    print(f"bundle {bundle.hash} in {out}, for volumes of {shape} voxels (z y x)")
    if heads is None:
        assumed = bundle.encoder.config.heads
        print(f"attention heads are not in weights: {assumed} are assumed; else give --heads")
