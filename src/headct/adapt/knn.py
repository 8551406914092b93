"""kNN: a scan has what the labelled scans that look most alike have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headct.adapt.logistic import draw_folds, log_loss
from headct.adapt.operating import OperatingConfig
from headct.config import Count
from headct.store.label_table import UNKNOWN
from headct.store.labels import Labels

Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[np.float32]]
ROWS_AT_ONCE = 512


class KnnConfig(OperatingConfig):
    """How neighbours vote."""

    neighbours: tuple[Count, ...] = Field(default=(5, 10, 20, 40, 80), min_length=1)
    """Numbers of neighbours to choose from by cross-validation."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the votes: a neighbour counts exp(cosine / temperature)."""
    n_folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation; patients stay whole."""


@dataclass(frozen=True)
class Neighbours:
    """Labelled scans that vote.

    Attributes:
        bank: unit vectors of the train scans, [m d].
        values: their labels, [m f]: 1, 0, -1 unknown.
        k: how many of those with a known label vote on a finding.
        temperature: of the votes.

    Source:
        Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        section 3.4; the share of positives counts as one more neighbour: no score is 0 or 1.
    """

    bank: Floats
    values: NDArray[np.int8]
    k: int
    temperature: float

    def scores(self, x: Floats) -> Floats:
        """Standardised features [n d] -> scores [n f] in (0, 1)."""
        parts = [
            self._scores(unit(x[start : start + ROWS_AT_ONCE]))
            for start in range(0, len(x), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.values.shape[1]))

    def _scores(self, x: Floats) -> Floats:
        cosine = x @ self.bank.T  # [n m]
        votes = [self._vote(cosine[:, y != UNKNOWN], y[y != UNKNOWN]) for y in self.values.T]
        return np.stack(votes, axis=1)

    def _vote(self, cosine: Floats, y: NDArray[np.int8]) -> Floats:
        if not len(y):
            return np.full(len(cosine), 0.5)
        k = min(self.k, len(y))
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosine, nearest, axis=1)
        weight = np.exp((near - near.max(axis=1, keepdims=True)) / self.temperature)
        share = (weight * y[nearest]).sum(axis=1) / weight.sum(axis=1)
        return np.asarray((k * share + y.mean()) / (k + 1), dtype=np.float64)

    def arrays(self) -> Arrays:
        """What a task keeps of it."""
        about = np.array([self.k, self.temperature], np.float32)
        values = self.values.astype(np.float32)
        return {"bank": self.bank.astype(np.float32), "bank_values": values, "knn": about}


def from_arrays(arrays: Arrays) -> Neighbours:
    """The neighbours that a task keeps."""
    k, temperature = arrays["knn"]
    values = arrays["bank_values"].astype(np.int8)
    return Neighbours(arrays["bank"].astype(np.float64), values, int(k), float(temperature))


def unit(x: Floats) -> Floats:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1))


def fit_neighbours(x: Floats, labels: Labels, config: KnnConfig, seed: int) -> Neighbours:
    """Neighbours whose number lost least on held-out patients; one number for all findings.

    Args:
        x: standardised features of the train scans, [n d].
        labels: of the same scans.
        config: numbers, temperature, folds.
        seed: of the folds.
    """
    vectors, values = unit(x), labels.values
    fold = draw_folds(labels.patient_id, values, config.n_folds, seed)
    scores = np.empty((len(x), len(config.neighbours), values.shape[1]))
    for number in np.unique(fold):
        held = fold == number
        for i, k in enumerate(config.neighbours):
            voters = Neighbours(vectors[~held], values[~held], k, config.temperature)
            scores[held, i] = voters.scores(vectors[held])
    best = int(log_loss(scores, values).mean(1).argmin())
    bank = vectors.astype(np.float32).astype(np.float64)  # as it is saved
    return Neighbours(bank, values, config.neighbours[best], float(np.float32(config.temperature)))
