"""Nearest neighbours, and retrieval among them."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from headct.adapt.knn import KnnConfig, Neighbours, fit_neighbours, unit
from headct.adapt.probe import run_probe
from headct.adapt.retrieval import average_precision
from headct.adapt.task import load_task
from headct.volume.preprocessing import PRESETS

from .conftest import FINDINGS, make_labels, make_table


def test_votes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    bank, x = unit(rng.normal(size=(80, 5))), rng.normal(size=(30, 5))
    y = (rng.random((80, 1)) < 0.4).astype(np.int8)
    ours = Neighbours(bank, y, 7, 0.07).scores(x)[:, 0]

    def weight(distance):  # squared distance of unit vectors = 2 - 2 cosine
        return np.exp((1 - distance**2 / 2) / 0.07)

    theirs = KNeighborsClassifier(7, weights=weight).fit(bank, y[:, 0]).predict_proba(unit(x))[:, 1]
    np.testing.assert_allclose(ours, (7 * theirs + y.mean()) / 8, atol=1e-9)


def test_a_scan_whose_label_is_unknown_has_no_vote():
    bank = unit(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]))
    values = np.array([[-1], [1], [0], [0]], dtype=np.int8)
    with_unknown = Neighbours(bank, values, 1, 0.07).scores(np.array([[1.0, 0.0]]))
    without = Neighbours(bank[1:], values[1:], 1, 0.07).scores(np.array([[1.0, 0.0]]))
    np.testing.assert_array_equal(with_unknown, without)
    assert with_unknown[0, 0] > 0.5


def test_the_number_of_neighbours_is_chosen_on_held_out_patients():
    labels = make_labels(600)
    x = np.random.default_rng(3).normal(size=(600, 4))
    x[:, 0] += 4 * (labels.values[:, 0] == 1)
    noisy = fit_neighbours(x, labels, KnnConfig(neighbours=(1, 40)), 0)
    assert noisy.k == 40
    rng = np.random.default_rng(4)  # twelve alike, with one truth: more neighbours know less
    cluster = np.arange(600) // 12
    labels.values[:] = (rng.random((50, 3)) < 0.5)[cluster]
    x = rng.normal(size=(50, 16))[cluster] + 0.05 * rng.normal(size=(600, 16))
    alike = fit_neighbours(x, labels, KnnConfig(neighbours=(5, 400), temperature=1.0), 0)
    assert alike.k == 5


def test_a_knn_task_finds_its_like_and_scores_the_same_when_read_back(tmp_path):
    labels = make_labels(800)
    table = make_table(labels)
    table.vectors["cls"][:, :4] += 3 * (labels.values[:, :1] == 1)
    info = run_probe(table, labels, PRESETS["demo"], tmp_path / "knn", KnnConfig())
    assert (info.kind, info.method) == ("knn", "knn")
    rows = pq.read_table(tmp_path / "knn" / "predictions.parquet").to_pylist()
    test = [row for row in rows if row["split"] == "test" and row["finding"] == "sdh"]
    assert roc_auc_score([r["y_true"] for r in test], [r["y_score"] for r in test]) > 0.7
    scores = load_task(tmp_path / "knn").score_vectors(table.vectors)
    row_of = {name: row for row, name in enumerate(table.scan_id)}
    for row in rows[::7]:
        again = scores[row_of[row["scan_id"]], FINDINGS.index(row["finding"])]
        assert row["y_score"] == pytest.approx(again, abs=2e-6)
    retrieval = pq.read_table(tmp_path / "knn" / "retrieval.parquet").to_pylist()
    assert {row["finding"] for row in retrieval} == set(FINDINGS)
    sdh = [row for row in retrieval if row["finding"] == "sdh"]
    n_test_positive = (labels.values[labels.positions("test"), 0] == 1).sum()
    assert len(sdh) == n_test_positive
    assert np.mean([r["average_precision"] for r in sdh]) > sdh[0]["chance"] + 0.05


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    similarity, relevant = rng.normal(size=(6, 40)), rng.random(40) < 0.3
    expected = [average_precision_score(relevant, row) for row in similarity]
    np.testing.assert_allclose(average_precision(similarity, relevant), expected)
