"""The attentive probe: cached tokens, a query per finding, the same score from a volume."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from headct.adapt import operating
from headct.adapt.attentive import AttentiveConfig, AttentiveHead, HeadShape, run_attentive
from headct.adapt.scoring import score_store, scorer
from headct.adapt.task import load_task
from headct.adapt.token_table import read_tokens, write_tokens
from headct.errors import MismatchError, UsageError
from headct.model.bundle import load_bundle, save_bundle
from headct.model.embed import Bundle
from headct.model.encoder import ViT3D
from headct.store.labels import read_labels
from headct.store.store import open_store

from .conftest import GRID, TINY, require_written_task_holds

CONFIG = AttentiveConfig(steps=150, batch=8, width=16, threads=1)


@pytest.fixture(scope="module")
def tokens(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    return write_tokens(folder, open_store(world / "store"), load_bundle(world / "bundle"))


def test_cached_tokens_are_those_of_the_encoder(world, tokens):
    store, bundle = open_store(world / "store"), load_bundle(world / "bundle")
    found = bundle.encode_hu(store.read_hu([3, 17]))
    patches, centres = tokens.read(np.array([3, 17]))
    np.testing.assert_allclose(patches, found.patches.numpy(), atol=2e-3)
    np.testing.assert_array_equal(centres, found.centre_mm.numpy())


def test_an_interrupted_table_goes_on_and_ends_the_same(world, tokens, tmp_path, monkeypatch):
    store, bundle = open_store(world / "store"), load_bundle(world / "bundle")
    encode, calls = Bundle.encode_hu, []

    def cut_off(self, hu):
        calls.append(len(hu))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, hu)

    monkeypatch.setattr(Bundle, "encode_hu", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "t", store, bundle)
    with pytest.raises(UsageError, match="not a finished token table"):
        read_tokens(tmp_path / "t")
    again = write_tokens(tmp_path / "t", store, bundle)
    assert sum(calls) == len(store) + 16  # the part that was cut off, once more
    rows = np.arange(len(store))
    for one, other in zip(again.read(rows), tokens.read(rows), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tokens_of_another_bundle_are_not_mixed_in(world, tokens, tmp_path):
    torch.manual_seed(9)
    save_bundle(tmp_path / "other", ViT3D(TINY), GRID)
    with pytest.raises(UsageError, match="other things"):
        write_tokens(tokens.folder, open_store(world / "store"), load_bundle(tmp_path / "other"))


def test_it_finds_a_clot_that_is_in_few_tokens_and_scores_volumes_the_same(
    world, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(operating, "FEWEST_TO_CALIBRATE", 2)  # there are ten tune scans
    store = open_store(world / "store")
    labels = read_labels(world / "labels.csv", store.manifest)
    info = run_attentive(tokens, labels, store.preprocessing, tmp_path / "task", CONFIG)
    assert info.temperatures["coin"] != 1
    require_written_task_holds(tmp_path / "task")
    assert (info.kind, info.bundle_hash) == ("attentive", tokens.bundle_hash)
    rows = pq.read_table(tmp_path / "task" / "predictions.parquet").to_pylist()
    clot = [r for r in rows if r["finding"] == "clot" and r["split"] == "test"]
    assert roc_auc_score([r["y_true"] for r in clot], [r["y_score"] for r in clot]) > 0.9
    task = load_task(tmp_path / "task")
    with pytest.raises(UsageError, match="needs its encoder"):
        scorer(task)
    score = scorer(task, load_bundle(world / "bundle"))
    shown = labels.take(np.flatnonzero(labels.split != "train"))
    scores = score_store(score, store, shown.row.tolist())
    position = {name: i for i, name in enumerate(shown.scan_id)}
    for row in rows:
        found = scores[position[row["scan_id"]], labels.findings.index(row["finding"])]
        assert row["y_score"] == pytest.approx(found, abs=2e-6)


def test_the_same_seed_gives_the_same_head(world, tokens, tmp_path):
    store = open_store(world / "store")
    labels = read_labels(world / "labels.csv", store.manifest)
    config = CONFIG.model_copy(update={"steps": 10})
    for name in ("one", "two"):
        run_attentive(tokens, labels, store.preprocessing, tmp_path / name, config)
    one, two = ((tmp_path / name / "head.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_tokens_of_another_preprocessing_are_refused(world, tokens, tmp_path):
    store = open_store(world / "store")
    labels = read_labels(world / "labels.csv", store.manifest)
    about = json.loads((tokens.folder / "tokens.json").read_text())
    assert about["preprocessing_hash"] == GRID.hash
    other = GRID.model_copy(update={"spacing_mm_zyx": (9.0, 9.0, 9.0)})
    with pytest.raises(MismatchError, match="another preprocessing"):
        run_attentive(tokens, labels, other, tmp_path / "task", CONFIG)


def test_a_query_sees_places_as_well_as_contents():
    head = AttentiveHead(HeadShape(n_features=8, n_findings=2, width=8, dropout=0.5)).eval()
    with torch.no_grad():
        head.weight.normal_()
    patches, centres = torch.randn(1, 20, 8), torch.rand(1, 20, 3) * 100
    order = torch.randperm(20)
    same = head(patches[:, order], centres[:, order])
    torch.testing.assert_close(head(patches, centres), same)
    assert not torch.allclose(head(patches, centres), head(patches, centres[:, order]))
