"""Few-shot: K scans with a finding and K without, drawn several times, nothing else looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator

from headct.adapt.features import FeatureTable
from headct.adapt.logistic import Logistic, fit_logistic
from headct.adapt.predictions import to_predictions, write_predictions
from headct.adapt.readout import Readout, fit_readout
from headct.adapt.task import (
    PREDICTIONS,
    TaskInfo,
    count_labels,
    method_name,
    replacing_folder,
    save_heads,
    save_info,
    sites_of,
)
from headct.config import Config, Count, Positive
from headct.errors import LabelError, UsageError
from headct.progress import tracking
from headct.run import write_run_record
from headct.store.labels import Labels
from headct.volume.preprocessing import Preprocessing

SEED_SHOTS = 2
FEWEST_DRAWS = 5
Fitted = tuple[Readout, Logistic]


class FewshotConfig(Config):
    """How shots are drawn and fitted."""

    shots: tuple[Count, ...] = Field(default=(5, 10, 20), min_length=1)
    """K: positives, and as many negatives, per finding; each K once."""
    n_draws: Count = 5
    """Draws per K; the mean and spread over them is reported."""
    strength_c: Positive = 1e-3
    """Inverse strength of the L2 term: fixed beforehand, as K scans cannot choose it."""
    evenness: float = Field(default=0.5, ge=0, le=1)
    """As in the probe."""

    @field_validator("shots")
    @classmethod
    def _each_once(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(shots)) < len(shots):
            raise ValueError("a number of shots is there twice")
        return shots


def run_fewshot(
    table: FeatureTable,
    labels: Labels,
    preprocessing: Preprocessing,
    out: Path,
    config: FewshotConfig,
    *,
    seed: int = 0,
    name: str = "",
) -> TaskInfo:
    """Fit K + K scans per finding, for each K and draw; score the test scans; write TASK.

    Raises:
        LabelError: K exceeds the patients with, or without, a finding in the split train.
        MismatchError: features of other scans or of another preprocessing.
        UsageError: fewer than five draws.
    """
    if config.n_draws < FEWEST_DRAWS:
        raise UsageError(
            f"{config.n_draws} draws are too few to show a spread",
            remedy=f"draw at least {FEWEST_DRAWS} times",
        )
    require_enough(labels.take(labels.positions("train")), max(config.shots))
    table.require_made_on(preprocessing)
    features = table.of(labels.scan_id.tolist())
    n_train, n_positive = count_labels(labels.take(labels.positions("train")))
    info = TaskInfo(
        kind="fewshot",
        method=name or method_name("fewshot", table.source),
        findings=labels.findings,
        thresholds=dict.fromkeys(labels.findings),
        threshold_specificity=1.0,
        source=table.source,
        vectors=tuple(table.vectors),
        bundle_hash=table.bundle_hash,
        init_seed=table.init_seed,
        preprocessing=preprocessing,
        n_scans=len(labels.positions("train")),
        train_sites=sites_of(labels.take(labels.positions("train"))),
        n_train=n_train,
        n_positive=n_positive,
        seed=seed,
        head_k=max(config.shots),
    )
    predictions, heads = _predict(features, labels, config, info)
    with replacing_folder(out) as folder:
        save_heads(folder, heads)
        write_predictions(folder / PREDICTIONS, predictions)
        write_run_record(folder, config, seed=seed, verb="fewshot")
        save_info(folder, info)
    return info


def _predict(
    features: FeatureTable, labels: Labels, config: FewshotConfig, info: TaskInfo
) -> tuple[pa.Table, list[Fitted]]:
    """Scores of the test scans for each K and draw; the heads of the first draw of `head_k`."""
    test = labels.positions("test")
    x_test = {name: values[test] for name, values in features.vectors.items()}
    tables: list[pa.Table] = []
    kept: list[Fitted] = []
    with tracking("fewshot", len(config.shots) * config.n_draws, "draws") as tracker:
        for k in config.shots:
            for draw in range(config.n_draws):
                heads = [
                    _fit(features, labels, finding, k, draw, info.seed, config)
                    for finding in range(len(labels.findings))
                ]
                kept = heads if (k, draw) == (info.head_k, 0) else kept
                columns = [head.scores(readout.apply(x_test)) for readout, head in heads]
                tables.append(
                    to_predictions(
                        labels.take(test),
                        np.concatenate(columns, axis=1),
                        method=info.method,
                        seed=draw,
                        k=k,
                        n_train=[2 * k] * len(columns),
                        bundle_hash=info.bundle_hash,
                        preprocessing_hash=info.preprocessing.hash,
                    )
                )
                tracker.advance()
    return pa.concat_tables(tables), kept


def _fit(
    features: FeatureTable,
    labels: Labels,
    finding: int,
    k: int,
    draw: int,
    seed: int,
    config: FewshotConfig,
) -> Fitted:
    """A head of one finding; means and components, too, are fitted on the shots alone."""
    shots = draw_shots(labels, finding, k, draw, seed)
    readout = fit_readout(features, shots)
    x = readout.apply({name: values[shots] for name, values in features.vectors.items()})
    y, strength = labels.values[shots, finding : finding + 1], np.array([config.strength_c])
    fit = fit_logistic(x, y, strength, config.evenness)
    return readout, Logistic(fit.weight[0], fit.bias[0]).as_kept()


def draw_shots(labels: Labels, finding: int, k: int, draw: int, seed: int) -> NDArray[np.int64]:
    """Positions of K train scans with a finding and K without, all of different patients.

    The same for every feature table, so that methods are compared on equal draws.
    """
    rng = np.random.default_rng([seed, SEED_SHOTS, finding, k, draw])
    taken: set[str] = set()
    shots: list[int] = []
    for value in (1, 0):
        wanted = len(shots) + k
        train = np.flatnonzero((labels.split == "train") & (labels.values[:, finding] == value))
        for position in rng.permutation(train):
            if len(shots) == wanted:
                break
            if labels.patient_id[position] not in taken:
                taken.add(labels.patient_id[position])
                shots.append(int(position))
        if len(shots) < wanted:
            raise _too_few(labels.findings[finding], k)
    return np.array(shots)


def require_enough(labels: Labels, k: int) -> None:
    """Raise LabelError where K exceeds the patients with, or without, a finding."""
    poor = []
    for name, column in zip(labels.findings, labels.values.T, strict=True):
        patients = [len(set(labels.patient_id[column == value])) for value in (1, 0)]
        if min(patients) < k:
            poor.append(f"{name} ({patients[0]} with, {patients[1]} without)")
    if poor:
        raise LabelError(
            f"K = {k} exceeds the train patients of {', '.join(poor)}",
            remedy="lower --shots, label more scans, or leave these out with --findings",
        )


def _too_few(finding: str, k: int) -> LabelError:
    return LabelError(
        f"K = {k} exceeds the train patients of {finding}, each counted once",
        remedy="lower --shots, or leave the finding out with --findings",
    )
