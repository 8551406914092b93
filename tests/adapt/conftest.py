"""A small labelled world: features that hold some findings and not others."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from headct.adapt.features import FeatureTable
from headct.adapt.task import load_task
from headct.model.architecture import EncoderConfig
from headct.model.bundle import save_bundle
from headct.model.encoder import ViT3D
from headct.store.labels import Labels
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS, Preprocessing

N, WIDTH, CELLS = 240, 6, 36
GRID = Preprocessing(shape_zyx=(16, 16, 16), spacing_mm_zyx=(10.0, 10.0, 10.0))
TINY = EncoderConfig(
    width=24,
    depth=2,
    heads=2,
    mlp_ratio=2,
    patch_voxels_zyx=(4, 4, 4),
    spacing_mm_zyx=GRID.spacing_mm_zyx,
    n_tokens=40,
    n_registers=1,
)
N_TINY = 40
FINDINGS = ("sdh", "iph", "noise")


def make_labels(n=N, seed=0):
    rng = np.random.default_rng([seed, n])
    values = (rng.random((n, 3)) < 0.3).astype(np.int8)
    values[rng.random((n, 3)) < 0.1] = -1
    text = [np.array([f"{kind}-{i}" for i in range(n)], dtype=object) for kind in "cps"]
    return Labels(
        findings=FINDINGS,
        values=values,
        scan_id=text[0],
        row=np.arange(n),
        patient_id=text[1],
        study_id=text[2],
        site=np.array(["a" if i % 2 else "b" for i in range(n)], dtype=object),
        split=np.array([("train", "train", "tune", "test")[i % 4] for i in range(n)], dtype=object),
    )


def make_table(labels, source="encoder", seed=1):
    """`cls` holds sdh, one place of `region` holds iph, nothing holds the third finding."""
    n = len(labels)
    rng = np.random.default_rng([seed, n])
    vectors = {
        name: rng.normal(size=(n, WIDTH)).astype(np.float32) for name in ("cls", "mean", "max")
    }
    vectors["cls"][:, 0] += 2 * (labels.values[:, 0] == 1)
    region = rng.normal(size=(n, CELLS, WIDTH)).astype(np.float32)
    region[:, 7, 2] += 3 * (labels.values[:, 1] == 1)
    vectors["region"] = region.reshape(n, -1)
    return FeatureTable(
        scan_id=labels.scan_id,
        patient_id=labels.patient_id,
        study_id=labels.study_id,
        vectors=vectors,
        source=source,
        bundle_hash="b" * 16,
        preprocessing_hash=PRESETS["demo"].hash,
    )


def require_written_task_holds(folder):
    """The thresholds of task.json hold on the tune scans of predictions.parquet."""
    info = load_task(folder).info
    rows = pq.read_table(folder / "predictions.parquet")
    tune = rows.filter(pc.field("split") == "tune")
    require_thresholds_hold(tune, info.thresholds, info.rule_out_thresholds)


def require_thresholds_hold(rows, thresholds, rule_out, specificity=0.9, sensitivity=0.95):
    """The scores of a table of predictions reach what the thresholds fixed on them promise."""
    finding, truth, score = (rows[n].to_numpy() for n in ("finding", "y_true", "y_score"))
    for name in thresholds:
        absent, present = (score[(finding == name) & (truth == value)] for value in (0, 1))
        assert (absent < thresholds[name]).mean() >= specificity, name
        assert (present >= rule_out[name]).mean() >= sensitivity, name


@pytest.fixture
def labels():
    return make_labels()


@pytest.fixture
def table(labels):
    return make_table(labels)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A store of tiny heads, some with a bright clot; a bundle; labels."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    rows = []
    with StoreWriter(folder / "store", GRID, shard_scans=16) as writer:
        for i in range(N_TINY):
            hu = rng.normal(30, 4, GRID.shape_zyx)
            present = int(i % 3 == 0)
            hu[4:8, 4:8, 4:8] += 40 * present
            row = {
                "scan_id": f"c-{i}",
                "patient_id": f"p-{i}",
                "study_id": f"s-{i}",
                "series_id": f"e-{i}",
                "status": "accepted",
                "affine_zyx": np.eye(4),
            }
            writer.append(hu.astype(np.int16), row)
            split = ("train", "train", "tune", "test")[i % 4]
            rows.append([f"c-{i}", split, present, "" if i == 5 else int(rng.random() < 0.5)])
    with (folder / "labels.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["scan_id", "split", "clot", "coin"], *rows])
    torch.manual_seed(0)
    save_bundle(folder / "bundle", ViT3D(TINY), GRID)
    return folder
