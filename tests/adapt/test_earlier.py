"""What `headct embed` does with a feature table that is there already."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.adapt.conftest import GRID, TINY

from headct.adapt.earlier import Maker, require_no_other
from headct.adapt.embed import embed_source
from headct.adapt.features import read_features
from headct.errors import UsageError
from headct.model.bundle import load_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.run import append_jsonl
from headct.store.store import open_store
from headct.store.writer import StoreWriter


def write_store(folder, names, seed=0):
    with StoreWriter(folder, GRID) as writer:
        for name in names:
            rng = np.random.default_rng([seed, *name.encode()])
            row = {f"{what}_id": f"{what[0]}-{name}" for what in ("scan", "patient", "study")}
            row |= {"series_id": f"e-{name}", "status": "accepted", "affine_zyx": np.eye(4)}
            writer.append(rng.integers(-900, 90, GRID.shape_zyx).astype(np.int16), row)
    return folder


@pytest.fixture
def made(tmp_path):
    """A store, its feature table, and the bundle."""
    torch.manual_seed(0)
    save_bundle(tmp_path / "bundle", ViT3D(TINY), GRID)
    bundle = load_bundle(tmp_path / "bundle")
    store = write_store(tmp_path / "store", "ab")
    assert embed_source(store, tmp_path / "f.parquet", "encoder", bundle).is_new
    return store, tmp_path / "f.parquet", bundle


def test_the_same_table_is_left_as_it_is(made):
    store, path, bundle = made
    before, read = path.stat(), path.read_bytes()
    assert not embed_source(store, path, "encoder", bundle).is_new
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == read


def test_a_store_that_grew_replaces_its_table(made):
    store, path, bundle = made
    write_store(store, "c")
    assert embed_source(store, path, "encoder", bundle).is_new
    assert list(read_features(path).scan_id) == list(open_store(store).scan_ids)
    assert len(read_features(path)) == 3


def test_a_scan_that_ingest_refused_since_is_known_to_the_table(made):
    store, path, bundle = made
    maker = Maker("encoder", bundle.hash, GRID.hash)
    row = {"status": "refused", "reason": "not-ct", "series_id": "e-refused"}
    append_jsonl(store / "items.jsonl", [row])
    assert embed_source(store, path, "encoder", bundle).is_new
    assert require_no_other(path, maker).refused == {"e-refused"}


def test_scans_with_other_voxels_replace_their_table(made, tmp_path):
    _, path, bundle = made
    before = read_features(path).vectors["cls"]
    other = write_store(tmp_path / "again", "ab", seed=1)
    assert embed_source(other, path, "encoder", bundle).is_new
    assert not np.allclose(read_features(path).vectors["cls"], before)


@pytest.mark.parametrize("what", ["bundle", "kind", "seed", "floor"])
def test_a_table_of_another_maker_stays(made, tmp_path, what):
    store, path, bundle = made
    if what == "seed":
        path = tmp_path / "random.parquet"
        embed_source(store, path, "random-init", bundle, init_seed=0)
    torch.manual_seed(1)
    save_bundle(tmp_path / "other", ViT3D(TINY), GRID)
    kind, now, seed = {
        "bundle": ("encoder", load_bundle(tmp_path / "other"), 0),
        "kind": ("random-init", bundle, 0),
        "seed": ("random-init", bundle, 1),
        "floor": ("histogram", None, 0),
    }[what]
    before = path.read_bytes()
    with pytest.raises(UsageError, match="made with other things") as caught:
        embed_source(store, path, kind, now, init_seed=seed)
    assert "--out" in caught.value.remedy
    assert path.read_bytes() == before


def test_a_table_of_another_maker_is_found_before_files_are_ingested(made, tmp_path, monkeypatch):
    _, path, _ = made
    torch.manual_seed(1)
    save_bundle(tmp_path / "other", ViT3D(TINY), GRID)
    monkeypatch.setattr("headct.adapt.embed.ingest", lambda *_, **__: pytest.fail("ingested"))
    with pytest.raises(UsageError, match="made with other things"):
        embed_source(tmp_path, path, "encoder", load_bundle(tmp_path / "other"))


def test_a_table_of_another_store_stays(made, tmp_path):
    _, path, bundle = made
    other = write_store(tmp_path / "other", "bcd")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="1 scans that the source has not"):
        embed_source(other, path, "encoder", bundle)
    assert path.read_bytes() == before


def test_files_that_are_no_table_of_ours_stay(made, tmp_path):
    store, _, bundle = made
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UsageError, match="is no feature table"):
        embed_source(store, tmp_path / "note", "encoder", bundle)
    with pytest.raises(UsageError, match="is no feature table"):
        embed_source(store, store, "encoder", bundle)
    assert (tmp_path / "note").read_text() == "mine"
