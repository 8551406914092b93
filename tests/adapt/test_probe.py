from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from headct.adapt.fewshot import FewshotConfig, draw_shots, run_fewshot
from headct.adapt.knn import KnnConfig
from headct.adapt.operating import choose_thresholds
from headct.adapt.predictions import SCHEMA
from headct.adapt.probe import ProbeConfig, draw_train, run_probe
from headct.adapt.readout import N_CELLS, fit_readout
from headct.adapt.task import load_task, replacing_folder
from headct.config import check
from headct.errors import CheckpointError, LabelError, MismatchError, UsageError
from headct.evaluate.collect import collect
from headct.volume.preprocessing import PRESETS

from .conftest import FINDINGS, make_labels, make_table

DEMO = PRESETS["demo"]


def probe(tmp_path, table, labels, **more):
    out = tmp_path / "task"
    run_probe(table, labels, DEMO, out, ProbeConfig(), **more)
    return out


def auroc(rows, finding):
    wanted = [row for row in rows if row["finding"] == finding and row["split"] == "test"]
    return roc_auc_score([r["y_true"] for r in wanted], [r["y_score"] for r in wanted])


def test_a_probe_finds_what_the_features_hold_and_nothing_else(tmp_path):
    labels = make_labels(2000)
    out = probe(tmp_path, make_table(labels), labels)
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert auroc(rows, "sdh") > 0.8
    assert auroc(rows, "iph") > 0.9  # only region pooling holds it
    assert abs(auroc(rows, "noise") - 0.5) < 0.12


def test_predictions_have_no_train_scan_and_no_unknown_label(tmp_path, table, labels):
    predictions = pq.read_table(probe(tmp_path, table, labels) / "predictions.parquet")
    assert predictions.schema.equals(SCHEMA)
    assert set(predictions["split"].to_pylist()) == {"tune", "test"}
    shown = labels.split != "train"
    assert len(predictions) == (labels.values[shown] >= 0).sum()
    assert set(predictions["method"].to_pylist()) == {"probe"}


def test_a_saved_task_gives_the_same_scores(tmp_path, table, labels):
    task = load_task(probe(tmp_path, table, labels))
    rows = pq.read_table(task.folder / "predictions.parquet").to_pylist()
    scores = task.score_vectors(table.vectors)
    row_of = {name: row for row, name in enumerate(table.scan_id)}
    for row in rows:
        score = scores[row_of[row["scan_id"]], FINDINGS.index(row["finding"])]
        assert row["y_score"] == pytest.approx(score, abs=2e-6)
    with pytest.raises(MismatchError, match="lack region"):
        task.score_vectors({name: table.vectors[name] for name in ("cls", "mean", "max")})


def test_test_labels_and_test_features_change_no_score_of_tune(tmp_path, table, labels):
    first = pq.read_table(probe(tmp_path, table, labels) / "predictions.parquet").to_pylist()
    test = labels.positions("test")
    values = labels.values.copy()
    values[test] = np.where(values[test] >= 0, 1 - values[test], -1)
    vectors = {name: v.copy() for name, v in table.vectors.items()}
    vectors["cls"][test] *= 100
    changed = replace(table, vectors=vectors)
    again = probe(tmp_path, changed, replace(labels, values=values))
    second = pq.read_table(again / "predictions.parquet").to_pylist()
    tune = [(r["scan_id"], r["finding"], r["y_score"]) for r in first if r["split"] == "tune"]
    assert tune == [
        (r["scan_id"], r["finding"], r["y_score"]) for r in second if r["split"] == "tune"
    ]


def test_a_threshold_reaches_its_specificity_on_tune(labels):
    tune = labels.take(labels.positions("tune"))
    scores = np.random.default_rng(0).random(tune.values.shape).round(1)  # with ties
    thresholds = choose_thresholds(tune, scores, 0.9)
    for column, name in enumerate(FINDINGS):
        absent = scores[tune.values[:, column] == 0, column]
        assert (absent < thresholds[name]).mean() >= 0.9
        lower = absent[absent < thresholds[name]].max()
        assert (absent < lower).mean() < 0.9
    nothing = replace(tune, values=np.full_like(tune.values, -1))
    assert choose_thresholds(nothing, scores, 0.9) == dict.fromkeys(FINDINGS)


def test_the_readout_is_fitted_on_train_alone(table):
    train = np.arange(60)
    fitted = fit_readout(table, train)
    changed = {name: v.copy() for name, v in table.vectors.items()}
    for values in changed.values():
        values[60:] += 5
    again = fit_readout(replace(table, vectors=changed), train)
    for name, values in fitted.arrays.items():
        np.testing.assert_array_equal(values, again.arrays[name])
    x = fitted.apply(table.vectors)
    np.testing.assert_allclose(x[train].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(x[train].std(0), 1, atol=1e-3)


def test_a_drawn_training_set_depends_on_the_seed_alone(labels):
    first, again, other = (draw_train(labels, 50, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert set(first) != set(other)
    assert len(first) == 50
    assert set(labels.split[first]) == {"train"}
    with pytest.raises(LabelError, match="500 labelled scans asked for, the split train has 120"):
        draw_train(labels, 500, 0)


def test_too_few_of_a_class_is_said_before_training(tmp_path, table, labels):
    values = labels.values.copy()
    train = labels.positions("train")
    values[train, 2] = 0
    values[train[0], 2] = 1
    with pytest.raises(LabelError, match=r"noise \(1 with, 119 without\)"):
        probe(tmp_path, table, replace(labels, values=values))
    assert not list(tmp_path.iterdir())


def shots_of(tmp_path, labels, table, shots=(3, 8), **more):
    run_fewshot(table, labels, DEMO, tmp_path / "few", FewshotConfig(shots=shots, **more))
    return pq.read_table(tmp_path / "few" / "predictions.parquet")


def test_fewshot_scores_each_test_scan_once_per_k_and_draw(tmp_path, labels, table):
    rows = shots_of(tmp_path, labels, table)
    known = (labels.values[labels.positions("test")] >= 0).sum()
    assert len(rows) == known * 2 * 5
    assert set(rows["k"].to_pylist()) == {3, 8}
    assert set(rows["seed"].to_pylist()) == {0, 1, 2, 3, 4}
    assert set(rows["split"].to_pylist()) == {"test"}


def test_shots_are_of_different_patients_of_the_train_split(labels):
    shared = np.array([f"p-{i // 8}" for i in range(len(labels))], dtype=object)
    grouped = replace(labels, patient_id=shared)
    shots = draw_shots(grouped, 0, 10, draw=0, seed=0)
    assert len(shots) == 20
    assert (grouped.values[shots[:10], 0] == 1).all()
    assert (grouped.values[shots[10:], 0] == 0).all()
    assert set(grouped.split[shots]) == {"train"}
    assert len(set(grouped.patient_id[shots])) == 20
    assert (shots != draw_shots(grouped, 0, 10, draw=1, seed=0)).any()


def test_k_beyond_the_patients_is_an_error_with_counts(tmp_path, labels, table):
    with pytest.raises(LabelError, match=r"K = 90 exceeds the train patients of sdh \(\d+ with"):
        shots_of(tmp_path, labels, table, shots=(5, 90))
    with pytest.raises(UsageError, match="3 draws are too few"):
        shots_of(tmp_path, labels, table, n_draws=3)


def write_half_a_task(out):
    with replacing_folder(out) as folder:
        (folder / "half").write_text("x")
        raise OSError("disk")


@pytest.mark.parametrize("shots", [(0,), (-1, 5), (2, 2), ()])
def test_shots_that_cannot_be_drawn_are_refused(shots):
    with pytest.raises(UsageError):
        check({"shots": shots}, FewshotConfig, "recipe")


def test_a_task_is_replaced_whole_and_other_folders_are_left_alone(tmp_path, table, labels):
    out = probe(tmp_path, table, labels)
    before = (out / "task.json").read_text()
    with pytest.raises(OSError, match="disk"):
        write_half_a_task(out)
    assert (out / "task.json").read_text() == before
    probe(tmp_path, table, labels, n_labels=80)
    assert (out / "task.json").read_text() != before
    assert [p.name for p in tmp_path.iterdir()] == ["task"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a task"), replacing_folder(mine):
        pass
    assert (mine / "thesis.txt").exists()


def test_a_folder_that_is_no_task_or_a_damaged_one(tmp_path, table, labels):
    with pytest.raises(CheckpointError, match="not a task"):
        load_task(tmp_path)
    out = probe(tmp_path, table, labels)
    (out / "head.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError, match="damaged"):
        load_task(out)
    (out / "task.json").write_text('{"format_version": 1}')
    with pytest.raises(CheckpointError, match="damaged"):
        load_task(out)


def test_features_of_another_grid_are_refused(tmp_path, table, labels):
    for run, config in ((run_probe, ProbeConfig()), (run_fewshot, FewshotConfig(shots=(2,)))):
        with pytest.raises(MismatchError, match=PRESETS["small"].hash):
            run(table, labels, PRESETS["small"], tmp_path / "task", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [ProbeConfig(), KnnConfig()])
def test_a_fold_with_fewer_than_two_positives_left_is_said_before_training(
    tmp_path, table, labels, config
):
    values = labels.values.copy()
    train = labels.positions("train")
    values[train, 0] = 0
    values[train[:2], 0] = 1  # one is held out, one is left
    few = replace(labels, values=values)
    with pytest.raises(LabelError, match=r"leaves fewer than 2 train scans .* sdh to learn"):
        run_probe(table, few, DEMO, tmp_path / "task", config)
    assert not list(tmp_path.iterdir())
    values[train[2], 0] = 1
    run_probe(table, replace(labels, values=values), DEMO, tmp_path / "task", config)


def test_a_task_names_the_sites_of_its_train_scans(tmp_path, table, labels):
    site = np.where(labels.split == "train", "here", "elsewhere").astype(object)
    moved = replace(labels, site=site)
    run_fewshot(table, moved, DEMO, tmp_path / "few", FewshotConfig(shots=(2,)))
    run_probe(table, moved, DEMO, tmp_path / "probe", ProbeConfig())
    for name in ("few", "probe"):
        assert load_task(tmp_path / name).info.train_sites == ("here",)
    collection = collect([tmp_path / "few"])
    assert [(s.site, s.internal) for s in collection.sites] == [("elsewhere", False)]
    run_fewshot(table, labels, DEMO, tmp_path / "few", FewshotConfig(shots=(2,)))
    assert all(s.internal for s in collect([tmp_path / "few"]).sites)


@pytest.mark.parametrize(
    ("n_scans", "asked", "kept"), [(60, None, 40), (60, 7, 7), (2001, None, 32)]
)
def test_many_components_are_read_where_scans_are_few(n_scans, asked, kept):
    labels = make_labels(n_scans)
    region = np.random.default_rng(0).normal(size=(n_scans, N_CELLS * 40)).astype(np.float32)
    wide = replace(make_table(labels), vectors={"region": region})
    fitted = fit_readout(wide, np.arange(n_scans), asked)
    assert fitted.arrays["components"].shape == (40, kept)
    assert fitted.apply(wide.vectors).shape == (n_scans, N_CELLS * kept)
