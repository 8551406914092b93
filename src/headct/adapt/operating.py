"""What is fixed on the tune patients and carried to every site: temperatures and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from headct.adapt.predictions import rounded
from headct.config import Config
from headct.store.labels import Labels

Floats = NDArray[np.float64]
Thresholds = dict[str, float | None]
FEWEST_TO_CALIBRATE = 5
"""Tune scans with, and without, a finding below which its scores are left as they are."""
_NEAR_CERTAIN = 1e-6


class OperatingConfig(Config):
    """Where the tune scans fix the decision thresholds."""

    threshold_specificity: float = Field(default=0.9, gt=0, lt=1)
    """Specificity of the threshold that rules in."""
    rule_out_sensitivity: float = Field(default=0.95, gt=0, lt=1)
    """Sensitivity of the threshold that rules out."""


@dataclass(frozen=True)
class Operating:
    """Temperatures and thresholds of a task's findings.

    Attributes:
        temperatures: the logit of a score is divided by it; 1 where tune is too small to say.
        thresholds: rule in: calibrated score from which a finding is called, at a specificity.
        rule_out_thresholds: calibrated score below which a finding is unlikely, at a sensitivity.
    """

    temperatures: dict[str, float]
    thresholds: Thresholds
    rule_out_thresholds: Thresholds


def settle(labels: Labels, scores: Floats, config: OperatingConfig) -> Operating:
    """Temperatures first, thresholds then: on the calibrated scores, rounded as they are written.

    Args:
        labels: of the tune scans.
        scores: of the same scans, not calibrated, [n f].
        config: what the thresholds reach.
    """
    temperatures = fit_temperatures(labels, scores)
    calibrated = rounded(calibrate(scores, labels.findings, temperatures))
    return Operating(
        temperatures,
        choose_thresholds(labels, calibrated, config.threshold_specificity),
        choose_rule_out(labels, calibrated, config.rule_out_sensitivity),
    )


def fit_temperatures(labels: Labels, scores: Floats) -> dict[str, float]:
    """Temperature per finding; 1 where fewer than five scans with, or without, it are known."""
    temperatures = {}
    for name, truth, score in zip(labels.findings, labels.values.T, scores.T, strict=True):
        fewest = min((truth == 1).sum(), (truth == 0).sum())
        known = truth >= 0
        enough = fewest >= FEWEST_TO_CALIBRATE
        temperatures[name] = fit_temperature(truth[known], score[known]) if enough else 1.0
    return temperatures


def calibrate(scores: Floats, findings: tuple[str, ...], temperatures: dict[str, float]) -> Floats:
    """Scores [n f] with the temperature of each finding; findings without one stay as they are."""
    columns = [
        apply_temperature(column, temperatures[name]) if name in temperatures else column
        for name, column in zip(findings, scores.T, strict=True)
    ]
    return np.stack(columns, axis=1)


def fit_temperature(y_true: NDArray[np.int8], y_score: Floats) -> float:
    """The temperature that minimises the log loss of `apply_temperature` on these (tune) cases.

    Source:
        Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    logits = logit(np.clip(y_score, _NEAR_CERTAIN, 1 - _NEAR_CERTAIN))
    signs = np.where(y_true == 1, 1.0, -1.0)

    def log_loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signs * logits / np.exp(log_temperature)).mean())

    found = minimize_scalar(log_loss, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(y_score: Floats, temperature: float) -> Floats:
    """Scores softened (temperature above 1) or sharpened (below 1); their order is kept."""
    if temperature == 1.0:
        return y_score
    logits = logit(np.clip(y_score, _NEAR_CERTAIN, 1 - _NEAR_CERTAIN))
    return np.asarray(expit(logits / temperature), dtype=np.float64)


def choose_thresholds(labels: Labels, scores: Floats, specificity: float) -> Thresholds:
    """The lowest threshold of each finding that reaches a specificity on these (tune) scans.

    A score at or above the threshold is called; None where no scan without the finding is known.
    """
    thresholds: Thresholds = {}
    for column, name in enumerate(labels.findings):
        absent = np.sort(scores[labels.values[:, column] == 0, column])
        if not len(absent):
            thresholds[name] = None
            continue
        at = absent[min(int(np.ceil(specificity * len(absent))), len(absent)) - 1]
        thresholds[name] = float(np.nextafter(at, np.inf))
    return thresholds


def choose_rule_out(labels: Labels, scores: Floats, sensitivity: float) -> Thresholds:
    """The highest threshold of each finding that keeps a sensitivity on these (tune) scans.

    A score below the threshold is called unlikely; None where no scan with the finding is known.
    """
    thresholds: Thresholds = {}
    for column, name in enumerate(labels.findings):
        present = np.sort(scores[labels.values[:, column] == 1, column])[::-1]
        count = int(np.ceil(sensitivity * len(present)))
        thresholds[name] = float(present[count - 1]) if len(present) else None
    return thresholds
