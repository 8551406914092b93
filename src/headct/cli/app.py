"""`headct`: the verbs in data-flow order."""

from __future__ import annotations

import typer

from headct import __version__
from headct.cli import (
    adapt,
    benchmark,
    doctor,
    embed,
    evaluate,
    importing,
    ingest,
    labels,
    phantom,
    predict,
    pretrain,
    store,
)
from headct.cli.failure import errors_told

app = typer.Typer(
    help="From a head CT archive to a 3D foundation model and its use. Research use only.",
    epilog="Start with: headct phantom --preset demo --out ARCHIVE",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headct {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Options before the verb."""


for module in (
    phantom,
    ingest,
    labels,
    store,
    pretrain,
    importing,
    embed,
    adapt,
    predict,
    evaluate,
    benchmark,
    doctor,
):
    module.register(app)


def main() -> None:
    """Run the command line; errors become words, a remedy and an exit code."""
    with errors_told():
        app()
