"""Variance of AUROC and of paired differences in closed form, scans of a patient kept together.

With one scan a patient this is DeLong's test; with more it is Obuchowski's extension, in which
the components are summed over a patient before their variance is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from headct.evaluate.metrics import Floats


@dataclass(frozen=True)
class PairedTest:
    """Difference of two correlated AUROCs, its standard error and two-sided p; NaN if undefined."""

    difference: float
    standard_error: float
    p: float


def auroc_covariance(
    y_true: NDArray[np.int8], scores: Floats, patient_of: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """AUROC of m methods on the same cases, and their covariance.

    Args:
        y_true: [n] 0 or 1.
        scores: [m n].
        patient_of: [n] any patient number.

    Returns:
        AUROC [m] and covariance [m m]; NaN covariance with fewer than two patients on a side.

    Source:
        DeLong et al. 1988, Biometrics 44:837; Sun and Xu 2014, IEEE SPL 21:1389 (mid-ranks);
        Obuchowski 1997, Biometrics 53:567 (clusters).
    """
    positive = y_true == 1
    m_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not m_pos or not n_neg:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    of_positives, of_negatives = _components(scores, positive)
    auroc = of_positives.mean(axis=1)
    _, patient = np.unique(patient_of, return_inverse=True)
    from_pos = _sum_by(of_positives - auroc[:, None], patient[positive], patient.max() + 1)
    from_neg = _sum_by(of_negatives - auroc[:, None], patient[~positive], patient.max() + 1)
    n_with_pos = len(np.unique(patient[positive]))
    n_with_neg = len(np.unique(patient[~positive]))
    if n_with_pos < 2 or n_with_neg < 2:
        return auroc, np.full((len(scores), len(scores)), np.nan)
    n_patients = patient.max() + 1
    cross = from_pos @ from_neg.T
    return auroc, (
        from_pos @ from_pos.T * (n_with_pos / (n_with_pos - 1) / m_pos**2)
        + from_neg @ from_neg.T * (n_with_neg / (n_with_neg - 1) / n_neg**2)
        + (cross + cross.T) * (n_patients / (n_patients - 1) / (m_pos * n_neg))
    )


def paired_test(
    y_true: NDArray[np.int8], a: Floats, b: Floats, patient_of: NDArray[np.int64]
) -> PairedTest:
    """Is the AUROC of method `a` other than that of `b` on the same cases?

    Args:
        y_true: [n] 0 or 1.
        a: [seeds n] scores; the AUROC of a method is the mean over its seeds.
        b: [seeds n].
        patient_of: [n] any patient number.
    """
    auroc, covariance = auroc_covariance(y_true, np.concatenate([a, b]), patient_of)
    contrast = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])
    difference = float(contrast @ auroc)
    variance = float(contrast @ covariance @ contrast)
    if not math.isfinite(variance):
        return PairedTest(difference, float("nan"), float("nan"))
    error = math.sqrt(max(variance, 0.0))
    if error < 1e-12:
        return PairedTest(difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    return PairedTest(difference, error, math.erfc(abs(difference) / error / math.sqrt(2)))


def holm(p_values: Floats) -> Floats:
    """Holm-adjusted p of a family; NaN entries are no members and stay NaN."""
    adjusted = np.full(len(p_values), np.nan)
    members = np.flatnonzero(np.isfinite(p_values))
    order = members[np.argsort(p_values[members], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def _components(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Share of negatives below each positive [m pos], of positives above each negative [m neg]."""
    ranks = rankdata(scores, axis=1)
    within_pos = rankdata(scores[:, positive], axis=1)
    within_neg = rankdata(scores[:, ~positive], axis=1)
    m_pos, n_neg = within_pos.shape[1], within_neg.shape[1]
    of_positives = (ranks[:, positive] - within_pos) / n_neg
    of_negatives = 1.0 - (ranks[:, ~positive] - within_neg) / m_pos
    return of_positives, of_negatives


def _sum_by(values: Floats, group: NDArray[np.int64], n_groups: int) -> Floats:
    return np.stack([np.bincount(group, weights=row, minlength=n_groups) for row in values])
