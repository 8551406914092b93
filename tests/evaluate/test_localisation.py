"""Maps against masks: hits, overlap, chance, and masks brought to the grid of a scan."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from headct.adapt.attentive import AttentiveConfig, run_attentive
from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.start import Start
from headct.adapt.token_table import write_tokens
from headct.cli.app import app
from headct.dicom.pseudonym import Pseudonymizer
from headct.evaluate.explain import Masks, explain
from headct.evaluate.localisation import locate, on_grid, summarise
from headct.model.architecture import EncoderConfig
from headct.model.bundle import load_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.store.labels import read_labels
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing
from headct.volume.volume import Volume

SHAPE = (16, 16, 16)
GRID = Preprocessing(shape_zyx=SHAPE, spacing_mm_zyx=(5.0, 5.0, 5.0))
KEY = bytes(range(32))


def scan(mm=5.0):
    return Volume(np.full(SHAPE, 30, np.int16), np.diag([mm, mm, mm, 1.0]))


def cube(corner, size=3):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


def test_a_map_that_is_the_lesion_hits_and_one_elsewhere_does_not():
    mask = cube((2, 2, 2))
    exact = locate(mask.astype(np.float32), mask, scan())
    assert exact.hit
    far = locate(cube((11, 11, 11)).astype(np.float32), mask, scan())
    assert not far.hit
    assert far.dice == 0
    beside = np.zeros(SHAPE, np.float32)
    beside[2, 2, 6] = 1.0  # two voxels, 10 mm, past the rim
    assert locate(beside, mask, scan()).hit
    beside = np.roll(beside, 1, axis=2)
    assert not locate(beside, mask, scan()).hit


def test_chance_is_what_random_maps_reach():
    mask = cube((5, 5, 5), 4)
    rng = np.random.default_rng(0)
    found = [locate(rng.random(SHAPE).astype(np.float32), mask, scan()) for _ in range(400)]
    assert np.mean([f.hit for f in found]) == pytest.approx(found[0].chance_hit, abs=0.06)
    assert np.mean([f.dice for f in found]) == pytest.approx(found[0].chance_dice, abs=0.004)


@pytest.mark.parametrize("mm", [0.8, 9.0])
def test_a_mask_keeps_its_place_and_size_on_a_finer_and_a_coarser_grid(mm):
    fine = scan(2.0)
    shape = tuple(round(32 / mm) + 1 for _ in range(3))
    centre = np.indices(shape) * mm
    mask = ((centre - 14.0) ** 2).sum(axis=0) < 8.0**2
    found = on_grid(mask, np.diag([mm, mm, mm, 1.0]), fine)
    where = np.argwhere(found) * 2.0
    np.testing.assert_allclose(where.mean(axis=0), np.argwhere(mask).mean(axis=0) * mm, atol=1.5)
    if mm < 2:
        assert found.sum() * 8 == pytest.approx(mask.sum() * mm**3, rel=0.35)


def test_a_thin_lesion_does_not_vanish_between_voxels():
    mask = np.zeros((40, 40, 40), bool)
    mask[:, 11, :] = True  # half a millimetre thick
    found = on_grid(mask, np.diag([0.5, 0.5, 0.5, 1.0]), scan())
    assert found.any()


def test_intervals_resample_patients():
    rows = [
        {"map": "gradient", "finding": "sdh", "patient_id": f"p-{i // 4}", "hit": i // 4 % 2 == 0}
        | {"dice": 0.5, "chance_hit": 0.1, "chance_dice": 0.05}
        for i in range(80)
    ]
    (row,) = summarise(rows, n_boot=500, seed=0)
    assert (row["n"], row["hit"], row["chance_hit"]) == (80, 0.5, pytest.approx(0.1))
    assert row["hit_hi"] - row["hit_lo"] == pytest.approx(2 * 1.96 * 0.5 / 20**0.5, rel=0.25)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Heads, half of them with a bright clot somewhere; a task that learnt to see it; masks."""
    folder = tmp_path_factory.mktemp("explained")
    rng = np.random.default_rng(0)
    names = Pseudonymizer(KEY)
    lines = ["scan_id,split,clot"]
    (folder / "masks").mkdir()
    (folder / "key").write_text(KEY.hex())
    (folder / "key").chmod(0o600)
    with StoreWriter(folder / "store", GRID, shard_scans=64) as writer:
        for i in range(96):
            hu = rng.normal(30, 4, SHAPE)
            mask = cube(rng.integers(0, 12, 3), 4) if i % 2 else np.zeros(SHAPE, bool)
            hu[mask] += 45
            row = {
                "scan_id": f"c-{i}",
                "patient_id": f"p-{i}",
                "study_id": names.study_id(f"1.2.{i}"),
                "series_id": f"e-{i}",
                "status": "accepted",
                "affine_zyx": np.diag([5.0, 5.0, 5.0, 1.0]),
            }
            writer.append(hu.astype(np.int16), row)
            saved = {"clot": mask, "affine_zyx": np.diag([5.0, 5.0, 5.0, 1.0])}
            np.savez_compressed(folder / "masks" / f"1.2.{i}.npz", **saved)
            lines.append(f"c-{i},{('train', 'train', 'train', 'test')[i // 2 % 4]},{i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    config = EncoderConfig(
        width=24,
        depth=2,
        heads=2,
        mlp_ratio=2,
        patch_voxels_zyx=(4, 4, 4),
        spacing_mm_zyx=GRID.spacing_mm_zyx,
        n_tokens=64,
    )
    torch.manual_seed(0)
    save_bundle(folder / "bundle", ViT3D(config), GRID)
    store = open_store(folder / "store")
    labels = read_labels(folder / "labels.csv", store.manifest)
    recipe = FinetuneConfig(steps=150, batch=8, precision="fp32", threads=1)
    start = Start("bundle", load_bundle(folder / "bundle"))
    run_finetune(store, labels, start, folder / "task", recipe)
    return folder


def test_maps_of_a_task_that_sees_the_lesion_point_at_it(world, tmp_path):
    out = tmp_path / "maps"
    arguments = ["explain", "store", "--task", "task", "--masks", "masks", "--key", "key"]
    paths = [str(world / a) if (world / a).exists() else a for a in arguments]
    result = CliRunner().invoke(app, [*paths, "--n", "12", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = {
        row["map"]: row for row in json.loads((out / "localisation.json").read_text())["summary"]
    }
    gradient = found["gradient"]
    assert gradient["n"] == 12
    assert gradient["hit"] > gradient["chance_hit"] + 0.3
    assert gradient["dice"] > 2 * gradient["chance_dice"]
    assert "hit 0." in result.output or "hit 1." in result.output
    row = pq.read_table(out / "localisation.parquet").to_pylist()[0]
    image = nib.load(out / f"{row['scan_id']}_clot_gradient.nii.gz")
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, np.diag([5.0, 5.0, 5.0, 1.0]))
    assert image.get_fdata().max() == pytest.approx(1)
    assert (out / f"{row['scan_id']}_clot.png").read_bytes().startswith(b"\x89PNG")
    figure = ElementTree.parse(out / "localisation.svg").getroot()
    shown = " ".join(text for text in figure.itertext())
    assert "(12)" in shown
    assert "Dice of the top percentile" in shown


def test_an_attentive_probe_shows_where_its_query_looks(world, tmp_path):
    store = open_store(world / "store")
    labels = read_labels(world / "labels.csv", store.manifest)
    bundle = load_bundle(world / "task" / "bundle")  # an encoder that sees the clot
    tokens = write_tokens(tmp_path / "tokens", store, bundle)
    how = AttentiveConfig(steps=200, batch=16, width=16, threads=1)
    run_attentive(tokens, labels, GRID, tmp_path / "task", how)
    rows = explain(
        store,
        tmp_path / "task",
        world / "task" / "bundle",
        tmp_path / "maps",
        n_scans=12,
        masks=Masks(world / "masks", {Pseudonymizer(KEY).study_id(u): u for u in uids()}),
        n_boot=50,
    )
    found = {row["map"]: row for row in rows}
    assert set(found) == {"attention", "gradient", "query"}
    assert found["query"]["hit"] > found["query"]["chance_hit"] + 0.3
    assert found["query"]["dice"] > 2 * found["query"]["chance_dice"]


def uids():
    return [f"1.2.{i}" for i in range(96)]


def test_masks_of_others_and_findings_of_others_are_said(world, tmp_path):
    task = ["explain", str(world / "store"), "--task", str(world / "task"), "--out", str(tmp_path)]
    other = CliRunner().invoke(app, [*task, "--findings", "nope"])
    assert other.exit_code != 0
    (tmp_path / "empty").mkdir()
    none = CliRunner().invoke(app, [*task, "--masks", str(tmp_path / "empty"), "--n", "1"])
    assert none.exit_code != 0
