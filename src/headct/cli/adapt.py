"""`headct embed`, `probe`, `fewshot`, `finetune`: from an encoder to detectors."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from headct.config import Config, apply_overrides, check
from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.adapt.task import TaskInfo
    from headct.store.labels import Labels
    from headct.store.store import Store


C = TypeVar("C", bound=Config)
RECIPES = "headct.adapt.recipes"


class Floor(StrEnum):
    """Feature tables that need no network."""

    histogram = "histogram"
    blocks = "blocks"


class Encoder(StrEnum):
    """Encoders of other authors."""

    ct_fm = "ct-fm"
    merlin = "merlin"


class Head(StrEnum):
    """What a probe puts on frozen features."""

    logistic = "logistic"
    knn = "knn"
    attentive = "attentive"


class Scratch(StrEnum):
    """Networks that are trained from new weights."""

    vit = "vit"
    cnn3d = "cnn3d"
    resnet3d = "resnet3d"
    slices2d = "slices2d"


StorePath = Annotated[Path, typer.Option("--store", help="Store that the labels are about.")]
LabelsPath = Annotated[
    Path, typer.Option("--labels", help="CSV or Parquet: a key column, findings as 1, 0 or empty.")
]
Features = Annotated[
    Path,
    typer.Option(
        help="From `headct embed`, or a Parquet or NPZ; with --head attentive the tokens."
    ),
]
Out = Annotated[Path, typer.Option(help="Task folder; a task that is there is replaced.")]
KeyFile = Annotated[
    Path | None, typer.Option("--key", help="Key file of ingest; default as in `headct ingest`.")
]
Findings = Annotated[
    str | None, typer.Option("--findings", help="Only these columns, e.g. sdh,iph; default: all.")
]
NLabels = Annotated[
    int | None, typer.Option("--n-labels", help="Use only this many train scans; default: all.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave out rows about scans not in the store.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draws; paired across methods.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value; can be given again.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (embed, probe, fewshot, finetune):
        app.command(verb.__name__)(verb)


def embed(
    source: Annotated[Path, typer.Argument(help="A store, or a DICOM folder, file or NIfTI.")],
    out: Annotated[Path, typer.Option(help="Feature table (Parquet), or a folder of tokens.")],
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
    key: KeyFile = None,
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

    if encoder is not None:
        from headct.adapt.foreign import load_foreign

        if tokens:
            raise UsageError("--tokens goes with --bundle alone", remedy="leave out the others")
        others = load_foreign(encoder, weights, random_init)
        embed_foreign(source, out, others, init_seed=random_init or 0)
        return
    ours = load_bundle(bundle) if bundle is not None else None
    if tokens:
        if ours is None or random_init is not None:
            raise UsageError("--tokens goes with --bundle alone", remedy="leave out the others")
        from headct.adapt.token_table import write_tokens
        from headct.store.store import open_store

        write_tokens(out, open_store(source), ours)
        return
    kind = str(floor) if floor else "encoder" if random_init is None else "random-init"
    tally = embed_source(source, out, kind, ours, init_seed=random_init or 0, key=key)
    if tally is not None:
        typer.echo(f"{tally.n_seen} seen = {tally}")
    if tally is not None and tally.statuses["refused"]:
        raise typer.Exit(1)


def probe(
    store: StorePath,
    features: Features,
    labels: LabelsPath,
    out: Out,
    head: Annotated[
        Head,
        typer.Option(
            help="Logistic regression, votes of the nearest train scans, or a query per finding."
        ),
    ] = Head.logistic,
    key: KeyFile = None,
    findings: Findings = None,
    n_labels: NLabels = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
    settings: Settings = None,
) -> None:
    """Fit a head for all findings on a feature table, without touching the encoder.

    Example: headct probe --features features.parquet --labels labels.csv --store store --out probe

    Neighbours: headct probe --head knn --features features.parquet --labels labels.csv
                --store store --out knn

    Attentive: headct probe --head attentive --features tokens --labels labels.csv
               --store store --out attentive
    """
    if head is Head.attentive:
        from headct.adapt.attentive import AttentiveConfig, run_attentive
        from headct.adapt.token_table import read_tokens

        tokens, how = read_tokens(features), _configured(AttentiveConfig, settings or [])
        opened, known = _labelled(store, labels, key, findings, allow_missing, seed)
        grid = opened.preprocessing
        _say(run_attentive(tokens, known, grid, out, how, n_labels=n_labels, seed=seed))
        return
    from headct.adapt.features import read_features
    from headct.adapt.knn import KnnConfig
    from headct.adapt.probe import ProbeConfig, run_probe

    given = settings or []
    config = _configured(KnnConfig, given) if head is Head.knn else _configured(ProbeConfig, given)
    opened, known = _labelled(store, labels, key, findings, allow_missing, seed)
    table = read_features(features)
    preprocessing = opened.preprocessing
    _say(run_probe(table, known, preprocessing, out, config, n_labels=n_labels, seed=seed))


def fewshot(
    store: StorePath,
    features: Features,
    labels: LabelsPath,
    out: Out,
    key: KeyFile = None,
    findings: Findings = None,
    shots: Annotated[
        str | None, typer.Option(help="K scans with and K without a finding; default 5,10,20.")
    ] = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
    settings: Settings = None,
) -> None:
    """Fit on K scans with and K without each finding, several draws, and score the test scans.

    Example: headct fewshot --features features.parquet --labels labels.csv --store store
             --shots 5,10,20 --out fewshot
    """
    from headct.adapt.features import read_features
    from headct.adapt.fewshot import FewshotConfig, run_fewshot

    chosen = [f"shots=[{shots}]"] if shots else []
    config = _configured(FewshotConfig, [*(settings or []), *chosen])
    opened, known = _labelled(store, labels, key, findings, allow_missing, seed)
    table = read_features(features)
    _say(run_fewshot(table, known, opened.preprocessing, out, config, seed=seed))


def finetune(
    store: StorePath,
    labels: LabelsPath,
    out: Out,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Encoder to start from; with --from-scratch vit its architecture alone."),
    ] = None,
    from_scratch: Annotated[Scratch | None, typer.Option(help="Start from new weights.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML recipe; default: the one made for the start.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Rank: train low-rank changes, not all weights.")
    ] = None,
    key: KeyFile = None,
    findings: Findings = None,
    n_labels: NLabels = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
    settings: Settings = None,
) -> None:
    """Train an encoder and its head on labelled scans; stopped, the same command goes on.

    Example: headct finetune --bundle run/bundle --labels labels.csv --store store --out finetuned

    LoRA: headct finetune --bundle run/bundle --lora 8 --labels labels.csv --store store --out lora

    Scratch: headct finetune --from-scratch vit --labels labels.csv --store store --out scratch
    """
    if bundle is None and from_scratch is None:
        raise UsageError("give --bundle or --from-scratch", remedy="see headct finetune --help")
    from headct.adapt.finetune import FinetuneConfig, run_finetune
    from headct.adapt.start import Kind, Start
    from headct.config import load_recipe
    from headct.model.bundle import load_bundle

    kind: Kind = "bundle" if from_scratch is None else from_scratch.value
    name = "lora" if lora and kind == "bundle" else kind
    given = [*([f"lora.rank={lora}"] if lora else []), *(settings or [])]
    config = load_recipe(recipe or name, FinetuneConfig, given, builtin=RECIPES)
    opened, known = _labelled(store, labels, key, findings, allow_missing, seed)
    start = Start(kind, load_bundle(bundle) if bundle else None)
    _say(run_finetune(opened, known, start, out, config, n_labels=n_labels, seed=seed))


def _configured(model: type[C], settings: list[str]) -> C:
    """A config with its defaults and what --set says."""
    values: dict[str, Any] = {}
    apply_overrides(values, settings)
    return check(values, model, "--set")


def _labelled(
    store: Path,
    labels: Path,
    key: Path | None,
    findings: str | None,
    allow_missing: bool,
    seed: int,
) -> tuple[Store, Labels]:
    """Open the store, join the labels to it, and say what was left out."""
    from headct.dicom.pseudonym import load_key
    from headct.store.labels import needs_key, read_labels, refused_ids
    from headct.store.layout import ITEMS
    from headct.store.store import open_store

    opened = open_store(store)
    known = read_labels(
        labels,
        opened.manifest,
        load_key(key) if needs_key(labels) else None,
        findings=findings.split(",") if findings else None,
        refused=refused_ids(opened.path / ITEMS),
        allow_missing=allow_missing,
        seed=seed,
    )
    for note in known.notes:
        typer.echo(f"labels: {note}", err=True)
    return opened, known


def _say(info: TaskInfo) -> None:
    """One line per finding: what it was learnt from."""
    counts = [f"{name} {info.n_positive[name]}/{n}" for name, n in info.n_train.items()]
    typer.echo(f"{info.method}: present/known train scans: {', '.join(counts)}")
