"""`headct embed`: every scan as vectors or tokens, once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headct.cli.tally import print_tally
from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.adapt.embed import Embedded


class Floor(StrEnum):
    """Feature tables that need no network."""

    histogram = "histogram"
    blocks = "blocks"


class Encoder(StrEnum):
    """Encoders of other authors."""

    ct_fm = "ct-fm"
    merlin = "merlin"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("embed")(embed)


def embed(
    source: Annotated[Path, typer.Argument(help="A store, or a DICOM folder, file or NIfTI.")],
    out: Annotated[
        Path, typer.Option(help="Feature table (Parquet), or tokens; another one is not replaced.")
    ],
    bundle: Annotated[Path | None, typer.Option(help="Encoder from `headct pretrain`.")] = None,
    encoder: Annotated[
        Encoder | None, typer.Option(help="An encoder of other authors, on a store.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Its weight file, as published (safetensors or torch).")
    ] = None,
    random_init: Annotated[
        int | None, typer.Option(min=0, help="Seed: new weights in the architecture given.")
    ] = None,
    floor: Annotated[Floor | None, typer.Option(help="Features without a network.")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="All tokens of a store, for `probe --head attentive`.")
    ] = False,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Of a bundle; default: a GPU where there is one."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Key file of ingest; default as in `headct ingest`."),
    ] = None,
) -> None:
    """Turn every scan into vectors, once, for probe and few-shot.

    Example: headct embed store --bundle run/bundle --out features.parquet

    A floor: headct embed store --floor histogram --out histogram.parquet

    Tokens: headct embed store --bundle run/bundle --tokens --out tokens

    Another: headct embed store --bundle run/bundle --random-init 0 --out random.parquet

    Others': headct embed store --encoder ct-fm --weights model.safetensors --out ct-fm.parquet
    """
    if [bundle, floor, encoder].count(None) != 2:
        raise UsageError(
            "give one of --bundle, --encoder and --floor", remedy="see headct embed --help"
        )
    if floor is not None and random_init is not None:
        raise UsageError("a floor has no weights", remedy="leave out --random-init")
    if encoder is None and weights is not None:
        raise UsageError("--weights goes with --encoder", remedy="leave out one of them")
    from headct.adapt.embed import embed_foreign, embed_source
    from headct.model.bundle import load_bundle
    from headct.model.device import choose_device

    if encoder is not None:
        from headct.adapt.foreign import load_foreign

        if tokens:
            raise UsageError("--tokens goes with --bundle alone", remedy="leave out the others")
        others = load_foreign(encoder, weights, random_init)
        _say(embed_foreign(source, out, others, init_seed=random_init or 0), out)
        return
    ours = load_bundle(bundle, device=choose_device(device)) if bundle is not None else None
    if tokens:
        if ours is None or random_init is not None:
            raise UsageError("--tokens goes with --bundle alone", remedy="leave out the others")
        from headct.adapt.embed import Embedded
        from headct.adapt.token_table import TOKENS_JSON, write_tokens
        from headct.store.store import open_store

        is_new = not (out / TOKENS_JSON).is_file()
        table = write_tokens(out, open_store(source), ours)
        _say(Embedded(len(table.scan_id), is_new=is_new), out)
        return
    kind = str(floor) if floor else "encoder" if random_init is None else "random-init"
    done = embed_source(source, out, kind, ours, init_seed=random_init or 0, key=key)
    if done.tally is not None:
        print_tally(done.tally)
    _say(done, out)
    if done.tally is not None and done.tally.statuses["refused"]:
        typer.echo("for a list of inputs with their reasons: headct ingest, then STORE/items.jsonl")
        raise typer.Exit(1)


def _say(done: Embedded, out: Path) -> None:
    known = "" if done.is_new else ": was there already, made from the same scans; left as it is"
    typer.echo(f"{done.n_scans} scans in {out}{known}")
