"""`headct import`: weights of other authors -> a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        int | None, typer.Option(min=1, help="Attention heads; default: of 64 numbers each.")
    ] = None,
) -> None:
    """Turn FM-CT weights, which you have under its authors' agreement, into a bundle.

    The file is read without running anything in it; wrappers such as `module.` and `backbone.`
    come off, heads and decoders are left out. The bundle makes its input as FM-CT does.

    \b
    Example: headct import fmct weights.pt --out fmct-bundle
    Then: headct embed scan_folder --bundle fmct-bundle --out features.parquet
    """  # noqa: D301
    from headct.model.fmct import import_fmct

    identity = import_fmct(weights, out, heads)
    print(f"bundle {identity} in {out}")
