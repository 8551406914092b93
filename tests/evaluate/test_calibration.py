"""Reliability curves and temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from headct.adapt.operating import apply_temperature, fit_temperature
from headct.evaluate.calibration import reliability_curve
from headct.evaluate.metrics import ScoredCases


def overconfident(n: int = 4000, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, n)
    y = (random.random(n) < expit(logits)).astype(np.int8)
    return y, expit(logits * factor)


def test_the_temperature_undoes_a_known_overconfidence():
    y, score = overconfident()
    temperature = fit_temperature(y, score)
    assert temperature == pytest.approx(3.0, rel=0.15)
    calibrated = apply_temperature(score, temperature)
    before, after = (ScoredCases(y, s).metrics()["ece_error"][0] for s in (score, calibrated))
    assert after < 0.03 < before
    assert (np.argsort(calibrated) == np.argsort(score)).all()


def test_a_temperature_of_one_changes_nothing_that_matters():
    score = np.array([0.0, 0.2, 0.9, 1.0])
    assert apply_temperature(score, 1.0) == pytest.approx(score, abs=1e-5)


def test_a_curve_counts_every_case_once_and_its_interval_holds_the_share():
    y, score = overconfident(500)
    curve = reliability_curve(y, score)
    assert sum(point.n for point in curve) == 500
    assert sum(point.n * point.observed for point in curve) == pytest.approx(y.sum())
    for point in curve:
        assert point.lo <= point.observed <= point.hi
    assert [p.mean_score for p in curve] == sorted(p.mean_score for p in curve)
