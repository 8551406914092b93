"""TASK/: a head for some findings, what it was fitted on, and its predictions.

TASK/  task.json            findings, thresholds, hashes of encoder and preprocessing
       head.safetensors     readout and weights; of few-shot, of each finding: those of `head_k`
       predictions.parquet  scores of the tune and test scans
       retrieval.parquet    of kNN: how well each test scan finds its like among the train scans
       bundle/              the encoder, where it was trained for the task
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from headct import atomic
from headct.adapt.features import Vectors
from headct.adapt.knn import Neighbours, from_arrays
from headct.adapt.logistic import Logistic
from headct.adapt.operating import calibrate
from headct.adapt.readout import Arrays, Readout
from headct.atomic import write_json
from headct.config import Config
from headct.errors import CheckpointError, MismatchError, UsageError
from headct.store.label_table import UNKNOWN
from headct.store.labels import Labels
from headct.volume.preprocessing import Preprocessing

TASK_JSON = "task.json"
HEAD = "head.safetensors"
PREDICTIONS = "predictions.parquet"
RETRIEVAL = "retrieval.parquet"
BUNDLE = "bundle"
FORMAT_VERSION = 1
Head = Logistic | Neighbours


class TaskInfo(Config):
    """What task.json says."""

    format_version: int = FORMAT_VERSION
    kind: Literal[
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
    method: str
    """Name in tables and plots."""
    findings: tuple[str, ...]
    thresholds: dict[str, float | None]
    """Score from which a finding is called; None where the tune split could not say."""
    threshold_specificity: float
    """Share of the tune scans without the finding that score below its threshold."""
    rule_out_thresholds: dict[str, float | None] = Field(default={})
    """Score below which a finding is unlikely; None or absent where tune could not say."""
    rule_out_sensitivity: float = 0.95
    """Share of the tune scans with the finding that reach its rule-out threshold."""
    temperatures: dict[str, float] = Field(default={})
    """By which the logits of the raw scores were divided; fitted on the tune split."""
    source: str
    """Where the features come from: encoder, random-init, histogram, blocks or external."""
    vectors: tuple[str, ...] = ()
    """Vectors that the readout of a probe joins."""
    bundle_hash: str
    """Of the encoder that the task starts from; empty where there is none."""
    init_seed: int = 0
    """Of the weights of random-init features."""
    preprocessing: Preprocessing
    n_scans: int
    """Train scans that it was fitted on; of few-shot: that shots were drawn from."""
    train_sites: tuple[str, ...] = ()
    """Where these train scans are from: the sites at which its test patients are internal."""
    n_train: dict[str, int]
    """Labelled training scans per finding."""
    n_positive: dict[str, int]
    """Of these, scans with the finding."""
    seed: int
    network: dict[str, Any] = Field(default={})
    """Shape of a network that is no encoder; its weights are all in head.safetensors."""
    searched: dict[str, float] = Field(default={})
    """Log loss on held-out train patients by learning rate, where the rate was searched."""
    regularisation_c: float | None = None
    """Inverse strength of the probe that cross-validation chose."""
    head_k: int | None = None
    """Shots behind the head of few-shot: the most that were asked for, in the first draw."""
    neighbours: int | None = None
    """Neighbours that vote in kNN, chosen by cross-validation."""

    @property
    def is_named(self) -> bool:
        """Whether a person named the method; else it has the name of its kind and source."""
        return self.method not in (self.kind, method_name(self.kind, self.source))


def method_name(verb: str, source: str) -> str:
    """Name of a method in tables and plots: `probe`, `probe-histogram`, ..."""
    return verb if source == "encoder" else f"{verb}-{source}"


@dataclass(frozen=True)
class Task:
    """A loaded task."""

    info: TaskInfo
    folder: Path
    arrays: Arrays

    def score_vectors(self, vectors: Vectors) -> NDArray[np.float64]:
        """Calibrated scores in [0, 1]: named vectors [n d] -> [n f].

        Raises:
            MismatchError: the task has no such head, or the vectors are of another kind.
        """
        if not {"weight", "bank", "0.weight"} & self.arrays.keys():
            raise MismatchError(
                f"a {self.info.kind} task does not read features", remedy="score volumes with it"
            )
        parts = [_part(self.arrays, str(i)) for i in range(len(self.info.findings))]
        heads = parts if "0.weight" in self.arrays else [self.arrays]
        raw = np.concatenate([self._scores(head, vectors) for head in heads], axis=1)
        return calibrate(raw, self.info.findings, self.info.temperatures)

    def _scores(self, head: Arrays, vectors: Vectors) -> NDArray[np.float64]:
        x = Readout(self.info.vectors, _part(head, "readout")).apply(vectors)
        if "bank" in head:
            return from_arrays(head).scores(x)
        return Logistic.from_arrays(head).scores(x)


def _part(arrays: Arrays, name: str) -> Arrays:
    """The arrays under a name, without it."""
    return {k.removeprefix(f"{name}."): v for k, v in arrays.items() if k.startswith(f"{name}.")}


def save_head(folder: Path, readout: Readout, head: Head) -> None:
    """Write the head of a probe: its readout and its weights or neighbours, in float32."""
    _save(folder, _arrays(readout, head))


def save_heads(folder: Path, heads: Sequence[tuple[Readout, Head]]) -> None:
    """Write heads of one finding each, every one with a readout of its own."""
    _save(
        folder,
        {f"{i}.{name}": v for i, head in enumerate(heads) for name, v in _arrays(*head).items()},
    )


def _arrays(readout: Readout, head: Head) -> Arrays:
    arrays = {f"readout.{name}": v.astype(np.float32) for name, v in readout.arrays.items()}
    return arrays | head.arrays()


def _save(folder: Path, arrays: Arrays) -> None:
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / HEAD)


def save_info(folder: Path, info: TaskInfo) -> None:
    """Write task.json; a folder with it is a whole task, so it comes last."""
    write_json(
        folder / TASK_JSON, info.model_dump(mode="json", exclude={"preprocessing": {"hash"}})
    )


def load_task(folder: Path) -> Task:
    """Read a task.

    Raises:
        CheckpointError: no task there, damaged, or of another format version.
    """
    try:
        values = json.loads((folder / TASK_JSON).read_text(encoding="utf-8"))
        info = TaskInfo.model_validate(values)
        arrays = load_file(folder / HEAD) if (folder / HEAD).exists() else {}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder.name!r} is not a task: it has no {TASK_JSON}",
            remedy="make one with `headct probe`, `fewshot` or `finetune`",
        ) from error
    except (ValidationError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the task {folder.name!r} is damaged or of another version", remedy="make it again"
        ) from error
    return Task(info, folder, arrays)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its name at the end; nothing half-made is left.

    Raises:
        UsageError: something other than a task is in the way.
    """
    if folder.exists() and not is_replaceable(folder):
        raise UsageError(f"{folder.name!r} exists and is not a task", remedy="give another --out")
    with atomic.replacing_folder(folder) as aside:
        yield aside


def is_replaceable(folder: Path) -> bool:
    """Whether a folder is a task or empty, so that a new task may take its place."""
    return folder.is_dir() and ((folder / TASK_JSON).is_file() or not any(folder.iterdir()))


def count_labels(labels: Labels) -> tuple[dict[str, int], dict[str, int]]:
    """Scans with a known label, and scans with the finding, per finding."""
    known = (labels.values != UNKNOWN).sum(0).tolist()
    positive = (labels.values == 1).sum(0).tolist()
    return dict(zip(labels.findings, known, strict=True)), dict(
        zip(labels.findings, positive, strict=True)
    )


def sites_of(labels: Labels) -> tuple[str, ...]:
    """The sites of labelled scans, sorted."""
    return tuple(sorted(set(labels.site.tolist())))
