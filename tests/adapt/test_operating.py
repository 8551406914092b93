"""Temperatures and thresholds come from the tune scans and hold what they promise there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headct.adapt.operating import (
    OperatingConfig,
    apply_temperature,
    calibrate,
    choose_rule_out,
    settle,
)
from headct.adapt.predictions import to_predictions
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.task import load_task
from headct.volume.preprocessing import PRESETS

from .conftest import (
    FINDINGS,
    make_labels,
    make_table,
    require_thresholds_hold,
    require_written_task_holds,
)


def confident(labels, factor, seed=0):
    """Scores whose logits are `factor` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=labels.values.shape)
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return replace(labels, values=truth.astype(np.int8)), 1 / (1 + np.exp(-factor * logits))


def test_each_finding_gets_the_temperature_that_undoes_its_overconfidence():
    labels, scores = confident(make_labels(4000), 3.0)
    found = settle(labels, scores, OperatingConfig())
    assert list(found.temperatures.values()) == pytest.approx([3.0] * 3, rel=0.15)


def test_few_tune_scans_leave_scores_as_they_are():
    labels, scores = confident(make_labels(40), 3.0)
    labels.values[:, 0] = np.where(np.arange(40) < 4, 1, 0)
    found = settle(labels, scores, OperatingConfig())
    assert found.temperatures["sdh"] == 1.0
    np.testing.assert_array_equal(
        calibrate(scores, FINDINGS, found.temperatures)[:, 0], scores[:, 0]
    )


def test_a_rule_out_threshold_keeps_its_sensitivity_and_no_higher_one_does():
    labels = make_labels(400)
    scores = np.random.default_rng(0).random(labels.values.shape).round(2)  # with ties
    thresholds = choose_rule_out(labels, scores, 0.95)
    for column, name in enumerate(FINDINGS):
        present = scores[labels.values[:, column] == 1, column]
        assert (present >= thresholds[name]).mean() >= 0.95
        assert (present > thresholds[name]).mean() < 0.95
    nothing = replace(labels, values=np.zeros_like(labels.values))
    assert choose_rule_out(nothing, scores, 0.95) == dict.fromkeys(FINDINGS)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_written_scores_reach_what_the_thresholds_promise(factor):
    for seed in range(40):
        labels, scores = confident(make_labels(80, seed), factor, seed)
        found = settle(labels, scores, OperatingConfig())
        rows = to_predictions(
            labels,
            calibrate(scores, FINDINGS, found.temperatures),
            method="any",
            seed=0,
            n_train=[0] * 3,
            bundle_hash="",
            preprocessing_hash="",
        )
        require_thresholds_hold(rows, found.thresholds, found.rule_out_thresholds)


def test_a_probe_reaches_what_it_promises_on_the_tune_scans_it_wrote(tmp_path):
    for seed in range(3):
        labels = make_labels(240, seed)
        run_probe(make_table(labels), labels, PRESETS["demo"], tmp_path / "task", ProbeConfig())
        require_written_task_holds(tmp_path / "task")


def test_a_task_keeps_both_thresholds_and_applies_its_temperatures(tmp_path):
    labels = make_labels(400)
    table = make_table(labels)
    info = run_probe(table, labels, PRESETS["demo"], tmp_path / "task", ProbeConfig())
    assert set(info.temperatures) == set(info.rule_out_thresholds) == set(FINDINGS)
    task = load_task(tmp_path / "task")
    assert task.info == info
    calibrated = task.score_vectors(table.vectors)
    path = tmp_path / "task" / "task.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"temperatures": {}}))
    plain = load_task(tmp_path / "task").score_vectors(table.vectors)
    for column, name in enumerate(FINDINGS):
        expected = apply_temperature(plain[:, column], info.temperatures[name])
        np.testing.assert_allclose(calibrated[:, column], expected)
        np.testing.assert_array_equal(  # the order, and so every area, is kept
            np.argsort(calibrated[:, column]), np.argsort(plain[:, column])
        )
