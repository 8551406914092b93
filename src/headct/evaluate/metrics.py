"""How good scores are, with weights on the cases: one code path for estimates and resamples.

A patient bootstrap is a weight per case (how often its patient was drawn), so every metric here
takes weights [n b] and returns [b] values; a column of ones is the plain estimate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

AREAS = ("auroc", "auprc")
OPERATING = ("sensitivity", "specificity", "ppv", "npv")
RULE_OUT = tuple(f"rule_out_{name}" for name in OPERATING)
CALIBRATION = ("brier_error", "ece_error")
METRICS = (*AREAS, *OPERATING, *RULE_OUT, *CALIBRATION, "prevalence")
N_BINS = 10


class ScoredCases:
    """Truth and scores of one finding by one method, sorted once and weighted many times.

    Args:
        y_true: [n] 0 or 1.
        y_score: [n] in [0, 1].
        threshold: score from which a case is called positive; None: no operating point.
        rule_out: the same for the threshold that rules out.
    """

    def __init__(
        self,
        y_true: NDArray[np.int8],
        y_score: Floats,
        threshold: float | None = None,
        rule_out: float | None = None,
    ) -> None:
        self.n = len(y_true)
        self.positives, self.negatives = np.flatnonzero(y_true == 1), np.flatnonzero(y_true == 0)
        self.positives = self.positives[np.argsort(y_score[self.positives], kind="stable")]
        self.negatives = self.negatives[np.argsort(y_score[self.negatives], kind="stable")]
        values, self.first = np.unique(y_score[self.positives], return_index=True)
        self.below = np.searchsorted(y_score[self.negatives], values, side="left")
        self.up_to = np.searchsorted(y_score[self.negatives], values, side="right")
        self.rows = _linear_rows(y_true, y_score, (threshold, rule_out))
        self.has_threshold = (threshold is not None, rule_out is not None)

    def metrics(self, weights: Floats | None = None) -> dict[str, Floats]:
        """Every metric of METRICS, each [b]; NaN where it is not defined.

        Args:
            weights: [n b], how often each case counts; None: once.
        """
        if weights is None:
            weights = np.ones((self.n, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc, auprc = self.areas(weights)
            sums = self.rows @ weights
            return {"auroc": auroc, "auprc": auprc, **_from_sums(sums, self.has_threshold)}

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """AUROC and AUPRC (average precision), each [b]; ties count half in AUROC.

        Both need only, at each distinct score of a positive [u], the weight of the positives
        there and of the negatives below and up to it.
        """
        n_resamples = weights.shape[1]
        if not len(self.positives) or not len(self.negatives):
            nothing = np.full(n_resamples, np.nan)
            return nothing, nothing.copy()
        at = np.add.reduceat(weights[self.positives], self.first, axis=0)  # [u b]
        running = np.zeros((len(self.negatives) + 1, n_resamples))
        np.cumsum(weights[self.negatives], axis=0, out=running[1:])
        below, up_to = running[self.below], running[self.up_to]
        n_pos, n_neg = at.sum(axis=0), running[-1]
        auroc = (at * (below + up_to)).sum(axis=0) / (2 * n_pos * n_neg)
        true_positives = np.cumsum(at[::-1], axis=0)[::-1]
        called = true_positives + (n_neg - below)
        precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
        auprc = (at * precision).sum(axis=0) / n_pos
        return auroc, np.where(n_neg > 0, auprc, np.nan)


def _linear_rows(
    y_true: NDArray[np.int8], y_score: Floats, thresholds: tuple[float | None, ...]
) -> Floats:
    """[k n] rows whose weighted sums give all metrics but the areas."""
    positive, negative = (y_true == 1).astype(float), (y_true == 0).astype(float)
    at_thresholds = []
    for threshold in thresholds:
        called = (y_score >= (np.inf if threshold is None else threshold)).astype(float)
        at_thresholds += [positive * called, negative * (1 - called)]
    error = y_score - positive
    bins = bin_of(y_score)
    in_bin = (bins[None, :] == np.arange(N_BINS)[:, None]) * error
    return np.vstack([positive, negative, *at_thresholds, error**2, in_bin])


def _from_sums(sums: Floats, has_threshold: tuple[bool, bool]) -> dict[str, Floats]:
    n_pos, n_neg, *at_thresholds, squared_error = sums[:7]
    n = n_pos + n_neg
    points = zip((OPERATING, RULE_OUT), (at_thresholds[:2], at_thresholds[2:]), strict=True)
    values: dict[str, Floats] = {}
    for (names, (hits, rejections)), known in zip(points, has_threshold, strict=True):
        found = _at_threshold(n_pos, n_neg, hits, rejections)
        for name, value in zip(names, found, strict=True):
            values[name] = value if known else np.full_like(n, np.nan)
    return values | {
        "brier_error": squared_error / n,
        "ece_error": np.abs(sums[7:]).sum(axis=0) / n,
        "prevalence": n_pos / n,
    }


def _at_threshold(
    n_pos: Floats, n_neg: Floats, hits: Floats, correct_rejections: Floats
) -> tuple[Floats, ...]:
    """Sensitivity, specificity, PPV and NPV."""
    called, not_called = hits + n_neg - correct_rejections, correct_rejections + n_pos - hits
    return (
        hits / n_pos,
        correct_rejections / n_neg,
        hits / called,
        correct_rejections / not_called,
    )


def bin_of(y_score: Floats, n_bins: int = N_BINS) -> NDArray[np.int64]:
    """[n] index of the equal-width bin of [0, 1] that each score falls in."""
    return np.minimum((y_score * n_bins).astype(np.int64), n_bins - 1)
