"""Labelled scans watch a run and leave no trace in its weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headct.adapt.online import labelled_subset
from headct.errors import LabelError, MismatchError
from headct.model.embed import Embedding
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.train.pretrain import pretrain
from headct.volume.preprocessing import Preprocessing

from .tiny import N_SCANS, headct_pretrain, make_store, recipe, write_recipe

EVERY_FIVE = {"probe_every": 5, "metrics_every": 4, "checkpoint_every": 6, "panel_every": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("watch") / "store")


def table(path, n=N_SCANS, split=True):
    """Labels that alternate; half of the scans are train, then tune, and a few test."""
    lines = ["scan_id,split,sdh,iph" if split else "scan_id,sdh,iph"]
    for i in range(n):
        where = "train" if i < 10 else "tune" if i < 18 else "test"
        names = [f"c-{i:016x}", where] if split else [f"c-{i:016x}"]
        lines.append(",".join([*names, str(i % 2), "" if i == 3 else str(int(i % 4 > 1))]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_it_is_in_the_metrics_and_changes_no_weight(store, tmp_path):
    of = recipe(record=EVERY_FIVE)
    pretrain(of, store, tmp_path / "alone", threads=1)
    subset = labelled_subset(table(tmp_path / "labels.csv"), open_store(store))
    pretrain(of, store, tmp_path / "watched", threads=1, watch=subset)
    rows = {row["step"]: row for row in read_jsonl(tmp_path / "watched" / "metrics.jsonl")}
    assert list(rows) == [1, 4, 5, 8, 10, 12]
    for name in ("probe_linear_auroc", "probe_knn_auroc"):
        assert [step for step in rows if name in rows[step]] == [5, 10]
        assert 0 <= rows[5][name] <= 1
    weights = [
        load_file(tmp_path / run / "bundle" / "encoder.safetensors") for run in ("alone", "watched")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def vectors(labels_of, rows, noise=0.1):
    rng = np.random.default_rng(0)
    signal = np.array([labels_of(row) for row in rows], float)
    x = (rng.normal(0, noise, (len(rows), 6)) + signal[:, None]).astype(np.float32)
    return Embedding(x, x, x, x[:, None])


def test_it_sees_what_is_there_and_nothing_where_there_is_nothing(store, tmp_path):
    subset = labelled_subset(table(tmp_path / "labels.csv"), open_store(store))
    there = subset.score(vectors(lambda row: row % 2, subset.rows))
    assert there["probe_linear_auroc"] > 0.7 < there["probe_knn_auroc"]
    other = subset.score(vectors(lambda row: 0, subset.rows))
    assert other["probe_linear_auroc"] < 0.95


def test_test_scans_are_not_touched(store, tmp_path):
    subset = labelled_subset(table(tmp_path / "labels.csv"), open_store(store))
    assert set(subset.rows) == set(range(18))


def test_labels_that_tell_nothing_are_an_error_before_training(store, tmp_path):
    with pytest.raises(LabelError, match="two scans with and two without"):
        labelled_subset(table(tmp_path / "few.csv", n=11), open_store(store))


def test_labelled_scans_of_another_preprocessing_are_an_error(store, tmp_path):
    grid = Preprocessing(shape_zyx=(16, 16, 16), spacing_mm_zyx=(8.0, 8.0, 8.0), vertex_margin_mm=3)
    other = open_store(make_store(tmp_path / "other", grid=grid))
    subset = labelled_subset(table(tmp_path / "labels.csv"), other)
    with pytest.raises(MismatchError, match="preprocessing"):
        pretrain(recipe(), store, tmp_path / "run", threads=1, watch=subset)
    assert not (tmp_path / "run").exists()


def test_by_the_command(store, tmp_path):
    toml = write_recipe(tmp_path / "tiny.toml", steps=5, record=EVERY_FIVE)
    labels = table(tmp_path / "labels.csv")
    done = headct_pretrain(toml, "--store", store, "--out", tmp_path / "run", "--labels", labels)
    assert done.returncode == 0, done.stderr
    *_, last = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert "probe_knn_auroc" in last


def test_labels_of_scans_elsewhere_may_be_left_out(store, tmp_path):
    toml = write_recipe(tmp_path / "tiny.toml", steps=5, record=EVERY_FIVE)
    labels = table(tmp_path / "labels.csv", n=N_SCANS + 3)
    arguments = (toml, "--store", store, "--out", tmp_path / "run", "--labels", labels)
    refused = headct_pretrain(*arguments)
    assert refused.returncode != 0
    assert "--allow-missing" in refused.stderr
    assert headct_pretrain(*arguments, "--allow-missing").returncode == 0
