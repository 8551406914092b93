"""Weighted metrics against scikit-learn, slow loops, and repeated cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    roc_auc_score,
)

from headct.evaluate.metrics import METRICS, N_BINS, ScoredCases


def draw(seed: int, n: int = 60, levels: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(n) < 0.3).astype(np.int8)
    y[:2] = 0, 1
    score = random.integers(0, levels + 1, n) / levels
    weights = random.integers(0, 4, (n, 5)).astype(float)
    weights[:2] = 1
    return y, score, weights


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_areas_with_ties_and_weights_are_those_of_sklearn(seed, levels):
    y, score, weights = draw(seed, levels=levels)
    auroc, auprc = ScoredCases(y, score).areas(weights)
    for b, w in enumerate(weights.T):
        assert auroc[b] == pytest.approx(roc_auc_score(y, score, sample_weight=w))
        assert auprc[b] == pytest.approx(average_precision_score(y, score, sample_weight=w))


def test_a_weight_is_the_same_as_repeating_the_case():
    y, score, weights = draw(1)
    found = ScoredCases(y, score, 0.4, 0.2).metrics(weights)
    for b, w in enumerate(weights.T.astype(int)):
        repeated = ScoredCases(np.repeat(y, w), np.repeat(score, w), 0.4, 0.2).metrics()
        for name in METRICS:
            assert found[name][b] == pytest.approx(repeated[name][0]), name


def test_the_operating_point_is_that_of_the_confusion_matrix():
    y, score, _ = draw(2)
    found = ScoredCases(y, score, 0.5, 0.2).metrics()
    for threshold, prefix in ((0.5, ""), (0.2, "rule_out_")):
        (tn, fp), (fn, tp) = confusion_matrix(y, score >= threshold)
        assert found[f"{prefix}sensitivity"][0] == pytest.approx(tp / (tp + fn))
        assert found[f"{prefix}specificity"][0] == pytest.approx(tn / (tn + fp))
        assert found[f"{prefix}ppv"][0] == pytest.approx(tp / (tp + fp))
        assert found[f"{prefix}npv"][0] == pytest.approx(tn / (tn + fn))
    assert found["prevalence"][0] == pytest.approx(y.mean())


def test_without_a_threshold_there_is_no_operating_point():
    y, score, _ = draw(3)
    found = ScoredCases(y, score).metrics()
    assert np.isnan(found["sensitivity"][0])
    assert np.isnan(found["rule_out_npv"][0])
    assert np.isfinite(found["auroc"][0])


def test_calibration_errors_are_those_of_the_slow_way():
    y, score, _ = draw(4, levels=97)
    found = ScoredCases(y, score).metrics()
    assert found["brier_error"][0] == pytest.approx(brier_score_loss(y, score))
    gap = 0.0
    for low in np.arange(N_BINS) / N_BINS:
        last = low + 1 / N_BINS > 1 - 1e-9
        inside = (score >= low) & ((score < low + 1 / N_BINS - 1e-12) | last)
        if inside.any():
            gap += inside.mean() * abs(score[inside].mean() - y[inside].mean())
    assert found["ece_error"][0] == pytest.approx(gap)


@pytest.mark.parametrize("truth", [0, 1])
def test_one_class_has_no_area(truth):
    y = np.full(5, truth, dtype=np.int8)
    found = ScoredCases(y, np.linspace(0, 1, 5), 0.5).metrics()
    assert np.isnan(found["auroc"][0])
    assert np.isnan(found["auprc"][0])
    assert np.isfinite(found["brier_error"][0])


def test_a_resample_without_positives_is_undefined_and_the_others_are_not():
    y = np.array([1, 0, 0], dtype=np.int8)
    weights = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    found = ScoredCases(y, np.array([0.9, 0.1, 0.2]), 0.5).metrics(weights)
    assert np.isnan(found["auroc"][0])
    assert np.isnan(found["sensitivity"][0])
    assert found["auroc"][1] == found["auprc"][1] == found["sensitivity"][1] == 1
