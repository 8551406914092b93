"""DeLong and Obuchowski against slow loops, the bootstrap and each other; Holm against its rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from headct.evaluate.bootstrap import PatientBootstrap
from headct.evaluate.delong import auroc_covariance, holm, paired_test
from headct.evaluate.metrics import ScoredCases


def draw(seed: int, n: int = 80, levels: int = 15) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(n) < 0.35).astype(np.int8)
    common = random.normal(size=n)
    scores = np.stack([common + random.normal(size=n) + q * y for q in (1.2, 0.8, 0.0)])
    return y, np.round(scores * levels / 6) / levels


def slow_covariance(y: np.ndarray, scores: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """Obuchowski 1997, written as in the paper, one comparison at a time."""

    def psi(x: float, z: float) -> float:
        return 1.0 if x > z else 0.5 if x == z else 0.0

    n_pos, n_neg = int((y == 1).sum()), int((y == 0).sum())
    deviations = []
    for s in scores:
        area = roc_auc_score(y, s)
        by_pos, by_neg = dict.fromkeys(patient, 0.0), dict.fromkeys(patient, 0.0)
        for i in np.flatnonzero(y == 1):
            v10 = sum(psi(s[i], s[j]) for j in np.flatnonzero(y == 0)) / n_neg
            by_pos[patient[i]] += v10 - area
        for j in np.flatnonzero(y == 0):
            v01 = sum(psi(s[i], s[j]) for i in np.flatnonzero(y == 1)) / n_pos
            by_neg[patient[j]] += v01 - area
        deviations.append((by_pos, by_neg))
    i10, i01 = len(set(patient[y == 1])), len(set(patient[y == 0]))
    i_all = len(set(patient))
    covariance = np.zeros((len(scores), len(scores)))
    for r, (pos_r, neg_r) in enumerate(deviations):
        for s, (pos_s, neg_s) in enumerate(deviations):
            s10 = i10 / (i10 - 1) / n_pos * sum(pos_r[p] * pos_s[p] for p in pos_r)
            s01 = i01 / (i01 - 1) / n_neg * sum(neg_r[p] * neg_s[p] for p in neg_r)
            s11 = i_all / (i_all - 1) * sum(pos_r[p] * neg_s[p] for p in pos_r)
            s11_other = i_all / (i_all - 1) * sum(pos_s[p] * neg_r[p] for p in pos_r)
            covariance[r, s] = s10 / n_pos + s01 / n_neg + (s11 + s11_other) / (n_pos * n_neg)
    return covariance


def textbook_delong(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """DeLong 1988 by the kernel matrix and numpy's covariance."""
    kernels = [
        (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0]) for s in scores
    ]
    v10 = np.stack([k.mean(axis=1) for k in kernels])
    v01 = np.stack([k.mean(axis=0) for k in kernels])
    return np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]


@pytest.mark.parametrize("seed", range(4))
def test_areas_and_covariance_are_those_of_the_slow_loops(seed):
    y, scores = draw(seed)
    for patient in (np.arange(80), np.arange(80) // 3):
        areas, covariance = auroc_covariance(y, scores, patient)
        assert areas == pytest.approx([roc_auc_score(y, s) for s in scores])
        assert covariance == pytest.approx(slow_covariance(y, scores, patient))


def test_one_scan_a_patient_is_the_classical_delong():
    y, scores = draw(7)
    _, covariance = auroc_covariance(y, scores, np.arange(80))
    assert covariance == pytest.approx(textbook_delong(y, scores))


def test_copies_of_scans_add_no_information_where_patients_are_clusters():
    y, scores = draw(8)
    _, once = auroc_covariance(y, scores, np.arange(80))
    y4, scores4 = np.repeat(y, 4), np.repeat(scores, 4, axis=1)
    _, clustered = auroc_covariance(y4, scores4, np.repeat(np.arange(80), 4))
    _, naive = auroc_covariance(y4, scores4, np.arange(320))
    assert clustered == pytest.approx(once)
    assert naive[0, 0] < 0.3 * once[0, 0]


def test_the_standard_error_of_a_difference_is_that_of_the_bootstrap():
    y, scores = draw(9, n=400, levels=1000)
    scaled = 1 / (1 + np.exp(-scores))
    patient = np.arange(400) // 2
    found = paired_test(y, scaled[:1], scaled[2:], patient)
    a, b = ScoredCases(y, scaled[0]), ScoredCases(y, scaled[2])
    draws = [a.areas(w)[0] - b.areas(w)[0] for _, w in PatientBootstrap(patient, 800, 0).chunks()]
    assert found.standard_error == pytest.approx(np.concatenate(draws).std(), rel=0.12)
    z = abs(found.difference) / found.standard_error
    assert found.p == pytest.approx(2 * (1 - 0.5 * (1 + math.erf(z / math.sqrt(2)))), abs=1e-12)


def test_a_method_with_seeds_is_compared_by_the_mean_of_their_areas():
    y, scores = draw(10)
    found = paired_test(y, scores[:2], scores[2:], np.arange(80))
    areas = [roc_auc_score(y, s) for s in scores]
    assert found.difference == pytest.approx((areas[0] + areas[1]) / 2 - areas[2])


def test_a_method_does_not_differ_from_itself():
    y, scores = draw(11)
    found = paired_test(y, scores[:1], scores[:1], np.arange(80))
    assert (found.difference, found.p) == (0.0, 1.0)


def test_without_two_patients_on_each_side_there_is_no_test():
    y = np.array([1, 1, 0, 0], dtype=np.int8)
    scores = np.array([[0.9, 0.2, 0.3, 0.1], [0.5, 0.6, 0.4, 0.3]])
    assert np.isnan(paired_test(y, scores[:1], scores[1:], np.array([0, 0, 1, 2])).p)


def test_holm_steps_down_and_leaves_out_what_is_undefined():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    adjusted = holm(p)
    assert adjusted[[0, 3, 1, 4]] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert np.isnan(adjusted[2])
    assert (holm(np.array([0.6, 0.7])) == 1.0).all()
