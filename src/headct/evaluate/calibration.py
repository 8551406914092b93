"""Do scores mean probabilities? Reliability curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from headct.evaluate.metrics import N_BINS, Floats, bin_of


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose score falls in one bin: mean score against the share that is positive."""

    mean_score: float
    observed: float
    lo: float
    hi: float
    n: int


def reliability_curve(
    y_true: NDArray[np.int8], y_score: Floats, *, n_bins: int = N_BINS
) -> list[ReliabilityBin]:
    """Bins of equal width that hold at least one case, lowest scores first.

    `lo` and `hi` are the 95 % Clopper-Pearson interval of the observed share: cases are taken as
    independent there, unlike in the bootstrap.
    """
    bins = bin_of(y_score, n_bins)
    curve = []
    for number in np.unique(bins):
        inside = bins == number
        n, n_pos = int(inside.sum()), int(y_true[inside].sum())
        lo = beta.ppf(0.025, n_pos, n - n_pos + 1) if n_pos else 0.0
        hi = beta.ppf(0.975, n_pos + 1, n - n_pos) if n_pos < n else 1.0
        mean = float(y_score[inside].mean())
        curve.append(ReliabilityBin(mean, n_pos / n, float(lo), float(hi), n))
    return curve
