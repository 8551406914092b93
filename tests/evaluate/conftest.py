"""Tasks with made-up predictions of known quality."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headct.adapt.predictions import SCHEMA, write_predictions
from headct.adapt.task import PREDICTIONS, TaskInfo, save_info
from headct.volume.preprocessing import PRESETS

FINDINGS = ("sdh", "iph", "fracture")
KINDS = {
    "probe": ("probe", "encoder"),
    "finetune": ("finetune", "encoder"),
    "fewshot": ("fewshot", "encoder"),
    "probe-histogram": ("probe", "histogram"),
    "fewshot-histogram": ("fewshot", "histogram"),
    "scratch-vit": ("scratch-vit", ""),
    "scratch-cnn3d": ("scratch-cnn3d", ""),
}
MakeTask = Callable[..., Path]


class Cohort:
    """Scans of patients at two sites with truths; some truths are unknown, patients recur."""

    def __init__(self, n: int = 240, seed: int = 0, prevalence: float = 0.25) -> None:
        random = np.random.default_rng([seed, 1])
        self.scan_id = np.array([f"c-{i:016x}" for i in range(n)])
        patient = np.minimum(np.arange(n), np.arange(n) // 8 * 8 + np.arange(n) % 7)
        self.patient_id = np.array([f"p-{i:016x}" for i in patient])
        self.site = np.where(patient % 3 == 2, "hospital-b", "hospital-a")
        self.split = np.where((patient % 6 == 0), "tune", "test")
        self.truth = (random.random((n, len(FINDINGS))) < prevalence).astype(np.int8)
        self.truth[random.random(self.truth.shape) < 0.05] = -1

    def scores(self, quality: float, seed: int) -> np.ndarray:
        random = np.random.default_rng([seed, 2])
        logits = random.normal(-1.0, 1.0, self.truth.shape) + quality * (self.truth == 1)
        return np.round(1 / (1 + np.exp(-logits)), 6)


@pytest.fixture
def cohort() -> Cohort:
    return Cohort()


@pytest.fixture(scope="session")
def new_cohort() -> type[Cohort]:
    return Cohort


@pytest.fixture(scope="session")
def tasks_in() -> Callable[[Path], MakeTask]:
    """A function: folder -> a function that writes task folders there and gives their paths."""
    return _tasks_in


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    return _tasks_in(tmp_path)


def _tasks_in(parent: Path) -> MakeTask:
    def make(
        cohort: Cohort,
        method: str,
        quality: float = 1.0,
        *,
        seeds: tuple[int, ...] = (0,),
        shots: tuple[int | None, ...] = (None,),
        n_train: int = 300,
        name: str = "",
        change: Callable[[pa.Table], pa.Table] = lambda table: table,
        scores: np.ndarray | None = None,
    ) -> Path:
        folder = parent / (name or method)
        parts = [
            _rows(cohort, method, quality, seed, k, n_train, scores)
            for k in shots
            for seed in seeds
        ]
        folder.mkdir(parents=True)
        write_predictions(folder / PREDICTIONS, change(pa.concat_tables(parts)))
        save_info(folder, _info(method, n_train))
        return folder

    return make


def _rows(
    cohort: Cohort,
    method: str,
    quality: float,
    seed: int,
    k: int | None,
    n_train: int,
    scores: np.ndarray | None,
) -> pa.Table:
    if scores is None:
        noise = sum(map(ord, method)) * 100 + seed * 10 + (k or 0)
        scores = cohort.scores(quality * (1 if k is None else k / (k + 10)), noise)
    keep = cohort.split == ("test" if k else cohort.split)
    scan, finding = np.nonzero((cohort.truth >= 0) & keep[:, None])
    n = len(scan)
    encoder = "" if "scratch" in method or "histogram" in method else "b" * 16
    columns = {
        "scan_id": cohort.scan_id[scan],
        "patient_id": cohort.patient_id[scan],
        "site": cohort.site[scan],
        "split": cohort.split[scan],
        "finding": np.array(FINDINGS)[finding],
        "y_true": cohort.truth[scan, finding],
        "y_score": scores[scan, finding],
        "method": [method] * n,
        "k": [k] * n,
        "seed": [seed] * n,
        "n_train": [n_train if k is None else 2 * k] * n,
        "bundle_hash": [encoder] * n,
        "preprocessing_hash": [PRESETS["demo"].hash] * n,
    }
    return pa.table(columns, schema=SCHEMA)


def _info(method: str, n_train: int) -> TaskInfo:
    kind, source = KINDS[method]
    thresholds = dict.fromkeys(FINDINGS, None if kind == "fewshot" else 0.5)
    return TaskInfo(
        kind=kind,
        method=method,
        findings=FINDINGS,
        thresholds=thresholds,
        rule_out_thresholds={name: value and value / 3 for name, value in thresholds.items()},
        temperatures=dict.fromkeys(FINDINGS, 2.0),
        threshold_specificity=0.9,
        source=source,
        bundle_hash="" if source != "encoder" else "b" * 16,
        preprocessing=PRESETS["demo"],
        n_scans=n_train,
        n_train=dict.fromkeys(FINDINGS, n_train),
        n_positive=dict.fromkeys(FINDINGS, n_train // 4),
        seed=0,
    )
