from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss

from headct.adapt.logistic import (
    cross_validated_loss,
    draw_folds,
    eigenbasis,
    fit_logistic,
    log_loss,
    sigmoid,
)


def data(n, d, f=2, seed=0):
    rng = np.random.default_rng([seed, n, d])
    x = rng.normal(size=(n, d)) * np.logspace(0, -1, d) + 3
    logits = (x - 3) @ rng.normal(size=(d, f)) - 1.5
    return x, (rng.random((n, f)) < sigmoid(logits)).astype(np.int8)


@pytest.mark.parametrize(("n", "d"), [(80, 20), (40, 90)])
def test_the_fit_is_that_of_scikit_learn(n, d):
    x, y = data(n, d)
    strengths = np.array([1e-3, 1e-1, 10.0])
    fitted = fit_logistic(x, y, strengths)
    for k, c in enumerate(strengths):
        for f in range(y.shape[1]):
            other = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(x, y[:, f])
            np.testing.assert_allclose(fitted.weight[k, f], other.coef_[0], atol=2e-3)
            expected = other.predict_proba(x)[:, 1]
            np.testing.assert_allclose(fitted.scores(x)[:, k, f], expected, atol=2e-3)


def test_evenness_is_the_plain_fit_on_stretched_features():
    x, y = data(80, 20)
    strengths = np.array([1e-2])
    centred = x - x.mean(0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    stretched = centred @ directions.T * (spread / spread[0]) ** -0.5
    expected = fit_logistic(stretched, y, strengths).scores(stretched)
    own = fit_logistic(x, y, strengths, evenness=0.5).scores(x)
    np.testing.assert_allclose(own, expected, atol=1e-4)


def test_unknown_labels_count_as_if_the_scan_were_not_there():
    x, y = data(120, 10)
    holes = y.copy()
    holes[::3, 0] = -1
    with_holes = fit_logistic(x, holes, np.array([0.1]))
    rows = holes[:, 0] >= 0
    without = fit_logistic(x[rows], y[rows, :1], np.array([0.1]))
    np.testing.assert_allclose(with_holes.weight[0, 0], without.weight[0, 0], atol=1e-4)
    np.testing.assert_allclose(with_holes.bias[0, 0], without.bias[0, 0], atol=1e-3)


def test_features_that_never_vary_are_harmless():
    x, y = data(60, 5)
    x[:, 2] = 7.0
    fitted = fit_logistic(x, y, np.array([1.0]))
    assert np.isfinite(fitted.weight).all()
    np.testing.assert_allclose(fitted.weight[0, :, 2], 0, atol=1e-6)


def test_log_loss_leaves_unknown_labels_out():
    scores = np.array([[[0.9]], [[0.2]], [[0.5]]])
    y = np.array([[1], [0], [-1]], dtype=np.int8)
    assert log_loss(scores, y)[0, 0] == pytest.approx(sklearn_log_loss([1, 0], [0.9, 0.2]))


def test_folds_keep_patients_whole_and_share_out_rare_findings():
    rng = np.random.default_rng(0)
    patient = np.array([f"p-{i // 2}" for i in range(200)], dtype=object)
    y = (rng.random((200, 3)) < [0.05, 0.2, 0.5]).astype(np.int8)
    fold = draw_folds(patient, y, 5, seed=3)
    assert (fold[::2] == fold[1::2]).all()
    assert np.bincount(fold).min() >= 30
    with_rare = {name for name, value in zip(patient, y[:, 0], strict=True) if value == 1}
    per_fold = [len({p for p in with_rare if fold[patient == p][0] == k}) for k in range(5)]
    assert max(per_fold) - min(per_fold) <= 1


@pytest.mark.parametrize(("n", "d"), [(200, 20), (60, 90)])
def test_held_out_scores_are_those_of_fits_on_the_other_rows(n, d):
    x, y = data(n, d)
    strengths = np.array([1e-2, 1.0])
    fold = draw_folds(np.arange(n).astype(object), y, 4, seed=0)
    for number in range(4):
        held = fold == number
        alone = fit_logistic(x[~held], y[~held], strengths).scores(x[held])
        found = eigenbasis(x, 0.0).held_out_scores(y, strengths, held)
        np.testing.assert_allclose(found, alone, atol=5e-3)


def test_cross_validation_prefers_strength_where_there_is_nothing_to_learn():
    x, _ = data(100, 60)
    y = (np.random.default_rng(1).random((100, 1)) < 0.5).astype(np.int8)
    fold = draw_folds(np.arange(100).astype(object), y, 5, seed=0)
    losses = cross_validated_loss(eigenbasis(x, 0.0), y, np.array([1e-5, 10.0]), fold)
    assert losses[0, 0] < losses[1, 0]
    assert losses[0, 0] == pytest.approx(np.log(2), abs=0.03)


def test_a_strength_that_is_far_behind_is_not_tried_again_and_the_best_is_the_same():
    x, y = data(240, 60)
    fold = draw_folds(np.arange(240).astype(object), y, 5, seed=0)
    strengths = np.array([1e-3, 1e-2, 1e-1, 1e3])
    basis = eigenbasis(x, 0.0)
    losses = cross_validated_loss(basis, y, strengths, fold)
    scores = np.empty((240, 4, 2))
    for number in range(5):
        scores[fold == number] = basis.held_out_scores(y, strengths, fold == number)
    all_tried = log_loss(scores, y)
    assert np.isinf(losses[3]).all()
    assert losses.mean(1).argmin() == all_tried.mean(1).argmin()
    tried = np.isfinite(losses)
    np.testing.assert_allclose(losses[tried], all_tried[tried], atol=2e-4)
