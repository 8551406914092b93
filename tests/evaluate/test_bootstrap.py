"""Resamples of patients, their intervals, and their speed."""

from __future__ import annotations

import numpy as np
import pytest

from headct.evaluate import bootstrap
from headct.evaluate.bootstrap import PatientBootstrap, interval, p_value, pivotal_interval
from headct.evaluate.metrics import ScoredCases


def weights_of(plan: PatientBootstrap) -> np.ndarray:
    return np.concatenate([weights for _, weights in plan.chunks()], axis=1)


def test_all_scans_of_a_patient_come_together_and_as_many_patients_are_drawn():
    patient_of = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = weights_of(PatientBootstrap(patient_of, 200, seed=1))
    assert (weights[0] == weights[1]).all()
    assert (weights[3] == weights[5]).all()
    first_scans = weights[[0, 2, 3, 6]]
    assert (first_scans.sum(axis=0) == 4).all()
    assert first_scans.mean() == pytest.approx(1, abs=1e-9)
    assert len(np.unique(first_scans, axis=1).T) > 20


def test_the_draws_do_not_depend_on_the_chunks(monkeypatch):
    plan = PatientBootstrap(np.arange(30), 50, seed=3)
    whole = weights_of(plan)
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 7 * 30)
    assert np.array_equal(weights_of(plan), whole)
    assert not np.array_equal(weights_of(PatientBootstrap(np.arange(30), 50, seed=4)), whole)


def test_repeated_scans_of_patients_widen_the_interval():
    random = np.random.default_rng(0)
    y = np.repeat((random.random(60) < 0.4).astype(np.int8), 5)
    score = np.repeat(random.random(60), 5) * 0.5 + 0.3 * y
    widths = []
    for patient_of in (np.repeat(np.arange(60), 5), np.arange(300)):
        cases = ScoredCases(y, score)
        plan = PatientBootstrap(patient_of, 400, seed=0)
        lo, hi = interval(np.concatenate([cases.areas(w)[0] for _, w in plan.chunks()]))
        widths.append(hi - lo)
    assert widths[0] > 1.7 * widths[1]


def test_the_interval_of_a_calibration_error_takes_off_what_chance_adds():
    random = np.random.default_rng(1)

    def cases(n):
        logit = random.normal(-2, 1.5, n)
        y = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int8)
        return ScoredCases(y, 1 / (1 + np.exp(-1.3 * logit - 0.2)))

    true = cases(500_000).metrics()["ece_error"][0]
    held, n_samples, n = {"percentile": 0, "pivotal": 0}, 60, 400
    for seed in range(n_samples):
        sample, plan = cases(n), PatientBootstrap(np.arange(n), 200, seed)
        value = sample.metrics()["ece_error"][0]
        draws = np.concatenate([sample.metrics(w)["ece_error"] for _, w in plan.chunks()])
        lo, hi = pivotal_interval(value, draws)
        assert 0 <= lo <= value <= hi
        held["pivotal"] += lo <= true <= hi
        lo, hi = interval(draws)
        held["percentile"] += lo <= true <= hi
    assert held["percentile"] < 0.4 * n_samples
    assert held["pivotal"] > 0.7 * n_samples


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.10, (0.05, 0.18)),  # the distances from 0.02 and 0.15, turned round
        (0.01, (0.0, 0.01)),  # all of it may be chance
        (0.08, (0.01, 0.14)),
        (0.20, (0.20, 0.38)),
        (np.nan, (np.nan, np.nan)),
    ],
)
def test_a_pivotal_interval_turns_the_distances_round(value, expected):
    replicates = np.linspace(0.02, 0.15, 1001)
    assert pivotal_interval(value, replicates, level=1.0) == pytest.approx(expected, nan_ok=True)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    truth, covered = 0.76, 0  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for trial in range(150):
        y = np.repeat([1, 0], [30, 60]).astype(np.int8)
        score = 1 / (1 + np.exp(-(random.normal(size=90) + y)))
        plan = PatientBootstrap(np.arange(90), 200, seed=trial)
        replicates = np.concatenate([ScoredCases(y, score).areas(w)[0] for _, w in plan.chunks()])
        lo, hi = interval(replicates)
        covered += lo <= truth <= hi
    assert 0.88 <= covered / 150 <= 0.99


def test_undefined_draws_are_left_out_until_they_are_most():
    assert interval(np.array([np.nan, 1.0, 2.0, 3.0]))[0] == pytest.approx(1.05)
    assert np.isnan(interval(np.array([np.nan, np.nan, 1.0]))).all()
    assert np.isnan(interval(np.array([]))).all()


def test_p_is_small_for_a_clear_difference_and_never_zero():
    assert p_value(np.full(999, 0.2)) == pytest.approx(2 / 1000)
    assert p_value(np.linspace(-1, 1, 1001)) > 0.99
    assert np.isnan(p_value(np.array([np.nan])))
