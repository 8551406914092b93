"""What a benchmark compares: a TOML file of encoders, methods, sites, labels, shots and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from headct.config import Config, load_recipe

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
SiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$")]
Verb = Literal[
    "probe",
    "knn",
    "attentive",
    "fewshot",
    "finetune",
    "lora",
    "scratch-vit",
    "scratch-cnn3d",
    "scratch-resnet3d",
    "scratch-slices2d",
]
ON_VECTORS = ("probe", "knn", "fewshot")
SCRATCH = ("scratch-vit", "scratch-cnn3d", "scratch-resnet3d", "scratch-slices2d")


class EncoderSpec(Config):
    """Where the features of a scan come from: a bundle, a floor, or a table made elsewhere."""

    bundle: Path | None = None
    """Encoder from `headct pretrain` or `headct import`."""
    encoder: Literal["ct-fm", "merlin"] | None = None
    """An encoder of other authors."""
    weights: Path | None = None
    """Its weight file."""
    random_init: int | None = Field(default=None, ge=0)
    """Seed of new weights in the architecture of the bundle or the encoder."""
    floor: Literal["histogram", "blocks"] | None = None
    """Features without a network."""
    features: Path | None = None
    """Parquet or NPZ with `scan_id` and vectors: how the embeddings of any encoder enter."""
    n_pretrained: int | None = Field(default=None, ge=1)
    """Scans that it was pretrained on, for the scaling curve."""

    @model_validator(mode="after")
    def _one_source(self) -> EncoderSpec:
        given = [self.bundle, self.encoder, self.floor, self.features]
        if sum(source is not None for source in given) != 1:
            raise ValueError("give one of bundle, encoder, floor and features")
        if self.random_init is not None and self.bundle is None and self.encoder is None:
            raise ValueError("random_init goes with a bundle or encoder: it takes the architecture")
        if self.weights is not None and self.encoder is None:
            raise ValueError("weights go with an encoder")
        if self.encoder is not None and (self.weights is None) == (self.random_init is None):
            raise ValueError("an encoder wants either weights or random_init")
        return self


class MethodSpec(Config):
    """How a detector is made from features or weights."""

    verb: Verb
    """On features (probe to fewshot), on the weights of a bundle, or from new weights."""
    recipe: Path | None = None
    """TOML recipe of a fine-tuning; none: the one made for the start."""
    set: tuple[str, ...] = ()
    """key=value changes of the method's settings."""


class BenchmarkSpec(Config):
    """A matrix of tasks. Paths are taken from the folder of the spec."""

    store: Path
    """Canonical volumes of all sites."""
    labels: Path
    """Label table with splits: internal train and tune, test of every site."""
    key: Path | None = None
    """Key of ingest, where the labels name studies by UID."""
    allow_missing: bool = False
    """Leave out labels about scans that are not in the store."""
    findings: tuple[str, ...] = ()
    """Columns of the label table; none: all."""
    train_sites: tuple[SiteName, ...] = ()
    """Train and tune at each of these sites in turn, test at all; none: at all sites together."""
    n_labels: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Numbers of train scans; 0: all of them."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Of draws, weights and order; the same draws of labels for all methods."""
    encoders: dict[Name, EncoderSpec] = Field(default={})
    """By the name that tables and plots use."""
    methods: dict[Name, MethodSpec]
    """By the name that tables and plots use."""
    n_boot: int = Field(default=1000, ge=0)
    """Resamples of patients behind each interval."""
    min_positives: int = Field(default=10, ge=1)
    """Fewest positives for a finding to count in the macro mean."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of ENCODER.METHOD; none: pretrained ones with each other and with every floor."""

    @model_validator(mode="after")
    def _has_jobs(self) -> BenchmarkSpec:
        if not list(self.jobs()):
            raise ValueError("no method fits any encoder: nothing to do")
        return self

    def jobs(self) -> Iterator[Job]:
        """Every task of the matrix; methods that an encoder cannot do are left out."""
        for method_name, method in self.methods.items():
            few = method.verb == "fewshot"  # has its own numbers, and draws instead of seeds
            numbers, seeds = ((0,), self.seeds[:1]) if few else (self.n_labels, self.seeds)
            axes = (self._encoders_of(method), numbers, seeds, self.train_sites or ("",))
            for encoder, n_labels, seed, site in itertools.product(*axes):
                yield Job(encoder, method_name, n_labels, seed, site)

    def _encoders_of(self, method: MethodSpec) -> list[str | None]:
        if method.verb in SCRATCH:
            return [None]
        return [
            name
            for name, encoder in self.encoders.items()
            if method.verb in ON_VECTORS
            or (encoder.bundle is not None and encoder.random_init is None)
        ]


@dataclass(frozen=True)
class Job:
    """One task: an encoder (None: new weights), a method, labels (0: all), a seed, a site."""

    encoder: str | None
    method: str
    n_labels: int
    seed: int
    train_site: str = ""

    @property
    def series(self) -> str:
        """Name in tables and plots; its seeds and numbers of labels belong together."""
        return self.method if self.encoder is None else f"{self.encoder}.{self.method}"

    @property
    def name(self) -> str:
        """Name of its folder."""
        at = f"@{self.train_site}" if self.train_site else ""
        return f"{self.series}.{self.n_labels or 'all'}.{self.seed}{at}"


def load_spec(path: Path) -> BenchmarkSpec:
    """Read a spec; its paths are taken from its folder.

    Raises:
        UsageError: no such file, unknown keys, impossible values; all are listed.
    """
    spec = load_recipe(path, BenchmarkSpec)
    base = path.resolve().parent

    def placed(value: Path | None) -> Path | None:
        return None if value is None else base / value

    encoders = {
        name: e.model_copy(
            update={path: placed(getattr(e, path)) for path in ("bundle", "weights", "features")}
        )
        for name, e in spec.encoders.items()
    }
    methods = {
        name: m.model_copy(update={"recipe": placed(m.recipe)}) for name, m in spec.methods.items()
    }
    update = {"store": base / spec.store, "labels": base / spec.labels, "key": placed(spec.key)}
    return spec.model_copy(update=update | {"encoders": encoders, "methods": methods})
