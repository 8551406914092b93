"""Probes on a feature table: logistic regression or neighbours, tuned by cross-validation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headct.adapt.features import FeatureTable
from headct.adapt.knn import KnnConfig, Neighbours, fit_neighbours
from headct.adapt.logistic import Logistic, cross_validated_loss, draw_folds, eigenbasis
from headct.adapt.operating import OperatingConfig, calibrate, settle
from headct.adapt.predictions import to_predictions, write_predictions
from headct.adapt.readout import fit_readout
from headct.adapt.retrieval import write_retrieval
from headct.adapt.task import (
    PREDICTIONS,
    RETRIEVAL,
    Head,
    TaskInfo,
    count_labels,
    method_name,
    replacing_folder,
    save_head,
    save_info,
    sites_of,
)
from headct.config import Positive
from headct.errors import LabelError
from headct.run import write_run_record
from headct.store.labels import Labels
from headct.volume.preprocessing import Preprocessing

SEED_TRAIN_DRAW = 1
FEWEST_IN_FOLD = 2


class ProbeConfig(OperatingConfig):
    """How the probe is fitted."""

    strengths_c: tuple[Positive, ...] = Field(
        default=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1
    )
    """Inverse strengths of the L2 term; cross-validation chooses one for all findings."""
    evenness: float = Field(default=0.5, ge=0, le=1)
    """How far directions of small spread are stretched before the L2 term: 0 not, 1 to equal."""
    n_folds: int = Field(default=5, ge=2)
    """Folds of the inner cross-validation; patients stay whole."""


def run_probe(
    table: FeatureTable,
    labels: Labels,
    preprocessing: Preprocessing,
    out: Path,
    config: ProbeConfig | KnnConfig,
    *,
    n_labels: int | None = None,
    seed: int = 0,
    name: str = "",
) -> TaskInfo:
    """Fit a probe on the train scans, fix thresholds on tune, score tune and test once; write TASK.

    Args:
        table: features of at least the labelled scans.
        labels: of the store that the features were made from.
        preprocessing: of that store.
        out: the task folder; a task that is there is replaced at the end.
        config: how; its type says which kind of probe.
        n_labels: use only this many train scans, drawn by patient.
        seed: of the draw and of the folds.
        name: in tables and plots; by default that of the method.

    Raises:
        LabelError: a finding has too few scans with or without it to be learnt.
        MismatchError: features of other scans or of another preprocessing.
    """
    train = draw_train(labels, n_labels, seed)
    fitted = labels.take(train)
    require_trainable(fitted)
    table.require_made_on(preprocessing)
    features = table.of(labels.scan_id.tolist())
    readout = fit_readout(features, train)
    x = readout.apply(features.vectors)
    head, about = _fit(x[train], fitted, config, seed)
    raw = head.scores(x)
    tune = labels.positions("tune")
    operating = settle(labels.take(tune), raw[tune], config)
    n_train, n_positive = count_labels(fitted)
    info = TaskInfo(
        method=name or method_name(about["kind"], table.source),
        findings=labels.findings,
        **asdict(operating),
        **config.model_dump(include=set(OperatingConfig.model_fields)),
        source=table.source,
        vectors=readout.vectors,
        bundle_hash=table.bundle_hash,
        init_seed=table.init_seed,
        preprocessing=preprocessing,
        n_scans=len(fitted),
        train_sites=sites_of(fitted),
        n_train=n_train,
        n_positive=n_positive,
        seed=seed,
        **about,
    )
    scores = calibrate(raw, labels.findings, operating.temperatures)
    with replacing_folder(out) as folder:
        save_head(folder, readout, head)
        _write_predictions(folder, info, labels, scores)
        if isinstance(head, Neighbours):
            write_retrieval(folder / RETRIEVAL, head, x, labels)
        write_run_record(folder, config, seed=seed, verb="probe")
        save_info(folder, info)
    return info


def _fit(
    x: NDArray[np.float64], labels: Labels, config: ProbeConfig | KnnConfig, seed: int
) -> tuple[Head, dict[str, Any]]:
    """The head, and what task.json says of it."""
    if isinstance(config, KnnConfig):
        require_folds(labels, draw_folds(labels.patient_id, labels.values, config.n_folds, seed))
        neighbours = fit_neighbours(x, labels, config, seed)
        return neighbours, {"kind": "knn", "neighbours": neighbours.k}
    head, chosen = fit_head(x, labels, config, seed)
    return head, {"kind": "probe", "regularisation_c": chosen}


def _write_predictions(
    folder: Path, info: TaskInfo, labels: Labels, scores: NDArray[np.float64]
) -> None:
    shown = np.flatnonzero(labels.split != "train")
    predictions = to_predictions(
        labels.take(shown),
        scores[shown],
        method=info.method,
        seed=info.seed,
        n_train=list(info.n_train.values()),
        bundle_hash=info.bundle_hash,
        preprocessing_hash=info.preprocessing.hash,
    )
    write_predictions(folder / PREDICTIONS, predictions)


def fit_head(
    x: NDArray[np.float64], labels: Labels, config: ProbeConfig, seed: int
) -> tuple[Logistic, float]:
    """Weights [f d] and biases [f] with the strength that lost least on held-out patients.

    One strength serves all findings: one for each, chosen from some tens of positives, is noise.

    Args:
        x: standardised features of the train scans, [n d].
        labels: of the same scans.
        config: strengths and folds.
        seed: of the folds.

    Returns:
        The head, and the chosen strength.

    Raises:
        LabelError: see `require_folds`.
    """
    strengths = np.asarray(config.strengths_c)
    fold = draw_folds(labels.patient_id, labels.values, config.n_folds, seed)
    require_folds(labels, fold)
    basis = eigenbasis(x, config.evenness)
    best = cross_validated_loss(basis, labels.values, strengths, fold).mean(1).argmin()
    fit = basis.fit(labels.values, strengths[best : best + 1])
    return Logistic(fit.weight[0], fit.bias[0]).as_kept(), float(strengths[best])


def draw_train(labels: Labels, n_labels: int | None, seed: int) -> NDArray[np.int64]:
    """Positions of the train scans to learn from, whole patients first come first served.

    Raises:
        LabelError: no train scans, or fewer than asked for.
    """
    train = labels.positions("train")
    if n_labels is None:
        if not len(train):
            raise LabelError("no scan is in the split train", remedy="check the column split")
        return train
    if not 0 < n_labels <= len(train):
        raise LabelError(
            f"{n_labels} labelled scans asked for, the split train has {len(train)}",
            remedy=f"ask for 1 to {len(train)}",
        )
    names, patient = np.unique(labels.patient_id[train].astype(str), return_inverse=True)
    rank = np.random.default_rng([seed, SEED_TRAIN_DRAW]).permutation(len(names))
    order = np.lexsort((labels.scan_id[train].astype(str), rank[patient]))
    return np.sort(train[order[:n_labels]])


def require_trainable(labels: Labels, at_least: int = FEWEST_IN_FOLD) -> None:
    """Raise LabelError where a finding has fewer than two train scans with it, or without it."""
    counts = [((column == 1).sum(), (column == 0).sum()) for column in labels.values.T]
    poor = [
        f"{name} ({present} with, {absent} without)"
        for name, (present, absent) in zip(labels.findings, counts, strict=True)
        if min(present, absent) < at_least
    ]
    if poor:
        raise LabelError(
            f"too few train scans to learn {', '.join(poor)}",
            remedy="label more scans, or leave these out with --findings",
        )


def require_folds(labels: Labels, fold: NDArray[np.int64]) -> None:
    """Raise LabelError where a fold leaves fewer than two scans of a class to learn from.

    Args:
        labels: of the train scans.
        fold: of each of them.
    """
    poor = {
        name
        for number in np.unique(fold)
        for name, column in zip(labels.findings, labels.values[fold != number].T, strict=True)
        if min((column == 1).sum(), (column == 0).sum()) < FEWEST_IN_FOLD
    }
    if poor:
        names = ", ".join(name for name in labels.findings if name in poor)
        raise LabelError(
            f"cross-validation leaves fewer than {FEWEST_IN_FOLD} train scans with, or without, "
            f"{names} to learn from: too few patients have it",
            remedy="label more scans, or leave these out with --findings",
        )
