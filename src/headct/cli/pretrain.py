"""`headct pretrain`: unlabelled scans -> an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("pretrain")(pretrain)


def pretrain(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of headct (demo, small, base, ...) or a TOML file.")
    ],
    store: Annotated[Path, typer.Option(help="Store of scans, as `headct ingest` makes it.")],
    out: Annotated[Path, typer.Option(help="RUN folder; made or gone on with.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on only: an error where RUN holds no run.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value; can be given again.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train an encoder on unlabelled scans: masked reconstruction and self-distillation.

    Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves and leaves; killed, it loses the steps since the
    last checkpoint. The same command goes on, to the same weights as if it had never stopped.

    \b
    Example: headct pretrain demo --store archive/pool --out run
    Other length: headct pretrain demo --set steps=100 --store archive/pool --out short
    Several GPUs: torchrun --standalone --nproc-per-node 4 --no-python
      headct pretrain base --store S --out R
    """  # noqa: D301
    from headct.config import load_recipe
    from headct.errors import UsageError
    from headct.train.pretrain import pretrain as train
    from headct.train.recipe import PretrainRecipe

    if resume and not (out / "config.toml").is_file():
        raise UsageError(f"{out.name} holds no run to resume", remedy="leave --resume out")
    outcome = train(
        load_recipe(recipe, PretrainRecipe, overrides or ()), store, out, threads=threads
    )
    if outcome.status == "stopped":
        print(f"saved at step {outcome.step}")
        raise KeyboardInterrupt
    if outcome.status == "was-finished":
        print(f"{out} is finished ({outcome.step} steps); nothing to do")
        return
    print(f"{outcome.step} steps, {outcome.seen_scans} scans seen; encoder in {out / 'bundle'}")
