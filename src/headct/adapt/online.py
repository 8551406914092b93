"""A quick probe of a run of pretraining: linear and nearest neighbours, in one go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headct.adapt.knn import Neighbours, unit
from headct.adapt.logistic import fit_logistic
from headct.errors import LabelError
from headct.model.embed import Embedding
from headct.store.label_table import UNKNOWN
from headct.store.labels import Labels, read_labels
from headct.store.store import Store
from headct.train.watch import LabelledSubset

MAX_SCANS = 512
"""Of each split; more would cost the run more than they tell."""
STRENGTH_C = 1e-2
EVENNESS = 0.5
NEIGHBOURS, TEMPERATURE = 20, 0.07
FEWEST = 2
"""Scans with and without a finding that a split must have for the finding to count."""


def labelled_subset(
    table: Path,
    store: Store,
    key: bytes | None = None,
    seed: int = 0,
    *,
    allow_missing: bool = False,
) -> LabelledSubset:
    """The scans of a label table that a run is watched with: `train` to fit, `tune` to score.

    Scans of `test` are not touched: what a person does with these numbers is a choice, and test
    data are for after the last one.

    Args:
        table: labels, as for `read_labels`.
        store: of the scans.
        key: the secret that made the store's pseudonyms, where the table needs it.
        seed: of splits and of the scans that are taken where there are many.
        allow_missing: leave out rows about scans that the store never saw.

    Raises:
        LabelError: no finding has scans with and without it in both splits.
    """
    labels = read_labels(table, store.manifest, key, seed=seed, allow_missing=allow_missing)
    rng = np.random.default_rng([seed, len(labels)])
    parts = []
    for split in ("train", "tune"):
        positions = labels.positions(split)
        parts.append(np.sort(rng.permutation(positions)[:MAX_SCANS]))
    chosen = labels.take(np.concatenate(parts))
    score = QuickProbe(chosen, len(parts[0]))
    if not score.usable.any():
        raise LabelError(
            "no finding has two scans with and two without it in both train and tune",
            remedy="give more labelled scans, or leave --labels out",
        )
    return LabelledSubset(store, tuple(int(row) for row in chosen.row), score)


@dataclass(frozen=True, eq=False)
class QuickProbe:
    """Macro-AUROC of two probes with fixed settings.

    Attributes:
        labels: of the scans to fit on, then of those to score.
        n_fit: how many are fitted on.
    """

    labels: Labels
    n_fit: int

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Findings with both kinds of scans in both splits, [f]."""
        fit, held = self.labels.values[: self.n_fit], self.labels.values[self.n_fit :]
        counts = [(part == value).sum(0) for part in (fit, held) for value in (0, 1)]
        return np.asarray(np.min(counts, axis=0) >= FEWEST)

    def __call__(self, embedding: Embedding) -> Mapping[str, float]:
        """`probe_linear_auroc`, `probe_knn_auroc`: means over findings; nan of vectors with nan."""
        x = np.concatenate([embedding.cls, embedding.mean, embedding.max], axis=1)
        x = x.astype(np.float64)
        if not np.isfinite(x).all():  # a probe never ends a run
            return dict.fromkeys(("probe_linear_auroc", "probe_knn_auroc"), math.nan)
        fit = x[: self.n_fit]
        x = (x - fit.mean(0)) / fit.std(0).clip(1e-6)
        values = self.labels.values[:, self.usable]
        known, truth = values[: self.n_fit], values[self.n_fit :]
        linear = fit_logistic(x[: self.n_fit], known, np.array([STRENGTH_C]), EVENNESS)
        near = Neighbours(unit(x[: self.n_fit]), known, NEIGHBOURS, TEMPERATURE)
        return {
            "probe_linear_auroc": _macro_auroc(truth, linear.scores(x[self.n_fit :])[:, 0]),
            "probe_knn_auroc": _macro_auroc(truth, near.scores(x[self.n_fit :])),
        }


def _macro_auroc(truth: NDArray[np.int8], scores: NDArray[np.float64]) -> float:
    from sklearn.metrics import roc_auc_score

    areas = []
    for y, score in zip(truth.T, scores.T, strict=True):
        known = y != UNKNOWN
        areas.append(roc_auc_score(y[known], score[known]))
    return float(np.mean(areas))
