"""`headct probe`, `fewshot`, `finetune`: from features or weights to detectors."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from headct.config import Config, apply_overrides, check
from headct.errors import UsageError

if TYPE_CHECKING:
    from headct.adapt.known_scans import KnownScans
    from headct.adapt.task import TaskInfo
    from headct.store.labels import Labels
    from headct.volume.preprocessing import Preprocessing


C = TypeVar("C", bound=Config)
RECIPES = "headct.adapt.recipes"


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


def _slug(name: str) -> str:
    if name and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,80}", name):
        raise UsageError(
            "--name wants a-z, 0-9, hyphens and dots, at most 81, a letter or digit first",
            remedy="e.g. --name probe-dino",
        )
    return name


StorePath = Annotated[Path, typer.Option("--store", help="Store that the labels are about.")]
StoreOrNot = Annotated[
    Path | None,
    typer.Option("--store", help="Store of the scans; needed for features made elsewhere."),
]
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
Name = Annotated[
    str,
    typer.Option(
        callback=_slug,
        help="In tables and plots; tasks of one name are seeds of one method. Default: the verb.",
    ),
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value; can be given again.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (probe, fewshot, finetune):
        app.command(verb.__name__)(verb)


def probe(
    features: Features,
    labels: LabelsPath,
    out: Out,
    store: StoreOrNot = None,
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
    name: Name = "",
    settings: Settings = None,
) -> None:
    """Fit a head for all findings on a feature table, without touching the encoder.

    Example: headct probe --features features.parquet --labels labels.csv --out probe

    Neighbours: headct probe --head knn --features features.parquet --labels labels.csv --out knn

    Attentive: headct probe --head attentive --features tokens --labels labels.csv --out attentive

    Another encoder: headct probe --features other.npz --store store --labels labels.csv --out other
    """
    if head is Head.attentive:
        from headct.adapt.attentive import AttentiveConfig, run_attentive
        from headct.adapt.token_table import read_tokens

        tokens, how = read_tokens(features), _configured(AttentiveConfig, settings or [])
        scans = _scans(store, tokens.scans)
        known, grid = _labelled(scans, labels, key, findings, allow_missing, seed)
        _say(run_attentive(tokens, known, grid, out, how, n_labels=n_labels, seed=seed, name=name))
        return
    from headct.adapt.features import read_features
    from headct.adapt.knn import KnnConfig
    from headct.adapt.probe import ProbeConfig, run_probe

    given = settings or []
    config = _configured(KnnConfig, given) if head is Head.knn else _configured(ProbeConfig, given)
    table = read_features(features)
    scans = _scans(store, table.scans)
    known, grid = _labelled(scans, labels, key, findings, allow_missing, seed)
    _say(run_probe(table, known, grid, out, config, n_labels=n_labels, seed=seed, name=name))


def fewshot(
    features: Features,
    labels: LabelsPath,
    out: Out,
    store: StoreOrNot = None,
    key: KeyFile = None,
    findings: Findings = None,
    shots: Annotated[
        str | None, typer.Option(help="K scans with and K without a finding; default 5,10,20.")
    ] = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
    name: Name = "",
    settings: Settings = None,
) -> None:
    """Fit on K scans with and K without each finding, several draws, and score the test scans.

    Example: headct fewshot --features features.parquet --labels labels.csv --shots 5,10,20
             --out fewshot
    """
    from headct.adapt.features import read_features
    from headct.adapt.fewshot import FewshotConfig, run_fewshot

    if shots is not None and not all(k.strip().isdecimal() for k in shots.split(",")):
        raise UsageError(f"--shots wants whole numbers, not {shots!r}", remedy="e.g. 5,10,20")
    chosen = [] if shots is None else [f"shots=[{shots}]"]
    config = _configured(FewshotConfig, [*(settings or []), *chosen])
    table = read_features(features)
    scans = _scans(store, table.scans)
    known, grid = _labelled(scans, labels, key, findings, allow_missing, seed)
    _say(run_fewshot(table, known, grid, out, config, seed=seed, name=name))


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
    search_lr: Annotated[
        str | None,
        typer.Option(help="Peak rates to choose from on held-out train patients: 3e-4,1e-3."),
    ] = None,
    key: KeyFile = None,
    findings: Findings = None,
    n_labels: NLabels = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
    name: Name = "",
    settings: Settings = None,
) -> None:
    """Train an encoder and its head on labelled scans; stopped, the same command goes on.

    Example: headct finetune --bundle run/bundle --labels labels.csv --store store --out finetuned

    LoRA: headct finetune --bundle run/bundle --lora 8 --labels labels.csv --store store --out lora

    Scratch: headct finetune --from-scratch vit --search-lr 3e-4,1e-3,3e-3 --labels labels.csv
             --store store --out scratch
    """
    if bundle is None and from_scratch is None:
        raise UsageError("give --bundle or --from-scratch", remedy="see headct finetune --help")
    from headct.adapt.finetune import FinetuneConfig, run_finetune
    from headct.adapt.known_scans import scans_of_store
    from headct.adapt.start import Kind, Start
    from headct.config import load_recipe
    from headct.model.bundle import load_bundle
    from headct.model.device import choose_device
    from headct.store.store import open_store

    kind: Kind = "bundle" if from_scratch is None else from_scratch.value
    built_in = "lora" if lora and kind == "bundle" else kind
    given = [*([f"lora.rank={lora}"] if lora else []), *(settings or [])]
    given += [f"search.lr=[{search_lr}]"] if search_lr else []
    config = load_recipe(recipe or built_in, FinetuneConfig, given, builtin=RECIPES)
    opened = open_store(store)
    scans = scans_of_store(opened)
    known, _ = _labelled(scans, labels, key, findings, allow_missing, seed)
    start = Start(kind, load_bundle(bundle, device=choose_device()) if bundle else None)
    _say(run_finetune(opened, known, start, out, config, n_labels=n_labels, seed=seed, name=name))


def _configured(model: type[C], settings: list[str]) -> C:
    """A config with its defaults and what --set says."""
    values: dict[str, Any] = {}
    apply_overrides(values, settings)
    return check(values, model, "--set")


def _scans(store: Path | None, kept: KnownScans | None) -> KnownScans:
    """The scans of a store; without one those that the features know of."""
    if store is not None:
        from headct.adapt.known_scans import scans_of_store
        from headct.store.store import open_store

        return scans_of_store(open_store(store))
    if kept is None:
        raise UsageError(
            "the features do not say of whom they are: `headct embed` did not make them",
            remedy="give --store, the store of their scans",
        )
    return kept


def _labelled(
    scans: KnownScans,
    labels: Path,
    key: Path | None,
    findings: str | None,
    allow_missing: bool,
    seed: int,
) -> tuple[Labels, Preprocessing]:
    """The labels of scans and the grid of these, and say what was left out."""
    from headct.dicom.pseudonym import load_key
    from headct.store.labels import needs_key, read_labels

    known = read_labels(
        labels,
        scans.manifest,
        load_key(key) if needs_key(labels) else None,
        findings=findings.split(",") if findings else None,
        refused=scans.refused,
        allow_missing=allow_missing,
        seed=seed,
    )
    for note in known.notes:
        typer.echo(f"labels: {note}", err=True)
    return known, scans.preprocessing


def _say(info: TaskInfo) -> None:
    """One line per finding: what it was learnt from."""
    counts = [f"{name} {info.n_positive[name]}/{n}" for name, n in info.n_train.items()]
    typer.echo(f"{info.method}: present/known train scans: {', '.join(counts)}")
