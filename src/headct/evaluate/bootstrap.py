"""Cluster bootstrap: patients are drawn with replacement, all their scans come along.

One plan of draws serves all methods and findings of a site, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headct.evaluate.metrics import Floats

_CHUNK_VALUES = 1_500_000


@dataclass(frozen=True)
class PatientBootstrap:
    """Resamples of the patients of one site.

    Attributes:
        patient_of: [n] patient index of each scan, 0..n_patients-1.
        n_resamples: number of draws.
        seed: with the draw's number it fixes each draw, whatever the chunking.
    """

    patient_of: NDArray[np.int64]
    n_resamples: int
    seed: int

    @property
    def n_patients(self) -> int:
        """Distinct patients."""
        return int(self.patient_of.max()) + 1

    def draw(self, number: int) -> NDArray[np.int64]:
        """[n_patients] how often each patient is in draw `number`."""
        random = np.random.default_rng([self.seed, number])
        drawn = random.integers(self.n_patients, size=self.n_patients)
        return np.bincount(drawn, minlength=self.n_patients)

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """Draws a few at a time, so memory stays bounded: their numbers, weights [n b]."""
        size = max(1, _CHUNK_VALUES // len(self.patient_of))
        for start in range(0, self.n_resamples, size):
            stop = min(start + size, self.n_resamples)
            counts = np.stack([self.draw(number) for number in range(start, stop)], axis=1)
            yield slice(start, stop), counts[self.patient_of].astype(np.float64)


def interval(replicates: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval; draws in which the metric is not defined are left out.

    Returns:
        (lo, hi), or NaN twice where fewer than half of the draws are defined.
    """
    defined = replicates[np.isfinite(replicates)]
    if len(defined) * 2 < len(replicates) or not len(defined):
        return float("nan"), float("nan")
    lo, hi = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def pivotal_interval(value: float, replicates: Floats, level: float = 0.95) -> tuple[float, float]:
    """Interval of an error >= 0 that chance inflates, in a resample once more than in the sample.

    Percentiles of such an error lie too high, often above the value itself. Here their distances
    from the value are turned round, which takes the inflation off; where all of the value may be
    inflation, the interval ends at the value.

    Args:
        value: the error in the sample.
        replicates: in the resamples.
        level: of the interval.

    Source:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, section 5.2.1 (the basic
        bootstrap interval).
    """
    lo, hi = interval(replicates, level)
    if not np.isfinite([value, lo]).all():
        return float("nan"), float("nan")
    return max(0.0, min(value, 2 * value - hi)), max(value, 2 * value - lo)


def p_value(differences: Floats) -> float:
    """Two-sided bootstrap p for "the difference is 0", never below 2 / (draws + 1).

    Source:
        Davison and Hinkley 1997, Bootstrap Methods and their Application, section 4.2 (the
        added one keeps the test valid).
    """
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return float("nan")
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))
