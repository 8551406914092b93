"""Attention maps: the right values, in the right place, shown the right way round."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
import torch

from headct.adapt.features import FeatureTable
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.scoring import encoder_vectors
from headct.adapt.task import load_task
from headct.errors import MismatchError
from headct.evaluate.attention import (
    _on_grid,
    attention_volume,
    gradient_attention_volume,
    head_of,
    montage,
    radiological,
    shown_slices,
)
from headct.evaluate.gallery import choose
from headct.model.architecture import EncoderConfig
from headct.model.bundle import Bundle
from headct.model.encoder import ViT3D
from headct.store.labels import Labels
from headct.volume.preprocessing import PRESETS
from headct.volume.volume import Volume

GRID = PRESETS["demo"]
CONFIG = EncoderConfig(
    width=24,
    depth=2,
    heads=2,
    patch_voxels_zyx=(8, 8, 8),
    spacing_mm_zyx=GRID.spacing_mm_zyx,
    n_tokens=60,
)


@pytest.fixture(scope="module")
def bundle():
    torch.manual_seed(0)
    encoder = ViT3D(CONFIG).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.mul_(4)  # a fresh encoder attends evenly; this one has preferences
    return Bundle(encoder, GRID, "b" * 16, {})


def ball(seed: int = 0, radius: int = 18) -> Volume:
    z, y, x = np.indices(GRID.shape_zyx) - np.array(GRID.shape_zyx)[:, None, None, None] / 2
    inside = z**2 + y**2 + x**2 < radius**2
    noise = np.random.default_rng(seed).normal(35, 10, GRID.shape_zyx)
    affine = np.diag([*GRID.spacing_mm_zyx, 1.0])
    return Volume(np.where(inside, noise, -1000).astype(np.int16), affine)


def test_a_map_lies_on_the_scan_and_runs_from_0_to_1(bundle):
    scan = ball()
    heat = attention_volume(bundle, scan)
    assert heat.shape_zyx == scan.shape_zyx
    assert np.array_equal(heat.affine_zyx, scan.affine_zyx)
    assert heat.hu.max() == pytest.approx(1)
    assert heat.hu.min() >= 0
    assert heat.hu[0, 0, 0] == 0
    assert heat.provenance[-1]["bundle"] == bundle.hash


def test_the_weight_of_a_patch_is_shown_at_its_place(bundle):
    weights = torch.zeros(6, 8, 6)
    weights[4, 1, 2] = 0.3
    heat = _on_grid(bundle, ball(), weights, "test").hu
    peak = np.unravel_index(heat.argmax(), heat.shape)
    centre = np.array([4, 1, 2]) * 8 + 3.5
    assert np.abs(np.array(peak) - centre).max() <= 1


def test_the_tokens_behind_a_gradient_map_are_those_of_the_encoder(bundle):
    scan, seen = ball(), []

    def head(tokens):
        seen.append(tokens)
        return tokens.patches.mean(1) + tokens.cls

    gradient_attention_volume(bundle, head, 0, scan)
    expected = bundle.encode_hu(scan.hu[None])
    assert torch.allclose(seen[0].patches.detach(), expected.patches, atol=1e-5)
    assert torch.allclose(seen[0].cls.detach(), expected.cls, atol=1e-5)
    assert torch.equal(seen[0].index, expected.index)


def test_a_gradient_map_depends_on_the_finding_and_is_empty_where_nothing_matters(bundle):
    scan = ball()

    def head(tokens):
        return torch.stack([tokens.cls[:, 0], tokens.cls[:, 1], 0 * tokens.cls[:, 0]], dim=1)

    first, second, nothing = (
        gradient_attention_volume(bundle, head, finding, scan).hu for finding in range(3)
    )
    assert first.max() == pytest.approx(1)
    assert np.abs(first - second).max() > 0.05
    assert not nothing.any()


@pytest.fixture(scope="module")
def probe(bundle, tmp_path_factory):
    scans = np.stack([ball(seed, radius=14 + seed % 5).hu for seed in range(12)])
    n = len(scans)
    names = np.array([f"c-{i}" for i in range(n)], dtype=object)
    patients = np.array([f"p-{i}" for i in range(n)], dtype=object)
    vectors = encoder_vectors(bundle, scans)
    table = FeatureTable(names, patients, names, vectors, "encoder", bundle.hash, GRID.hash)
    labels = Labels(
        findings=("sdh",),
        values=(np.arange(n) % 2)[:, None].astype(np.int8),
        scan_id=names,
        row=np.arange(n),
        patient_id=patients,
        study_id=names,
        site=np.full(n, "a", dtype=object),
        split=np.array(["train"] * 6 + ["tune"] * 2 + ["test"] * 4, dtype=object),
    )
    folder = tmp_path_factory.mktemp("attention") / "probe"
    run_probe(table, labels, GRID, folder, ProbeConfig(n_folds=3))
    return load_task(folder), scans


def test_the_head_that_is_differentiated_is_the_one_that_scores(bundle, probe):
    task, scans = probe
    expected = task.score_vectors(encoder_vectors(bundle, scans))
    logits = head_of(task)(bundle.encode_hu(scans))
    assert logits.sigmoid().numpy() == pytest.approx(expected, abs=2e-3)
    heat = gradient_attention_volume(bundle, head_of(task), 0, ball())
    assert np.isfinite(heat.hu).all()


def test_a_task_without_tokens_is_refused(probe):
    task, _ = probe
    histogram = task.info.model_copy(update={"vectors": ("histogram",), "source": "histogram"})
    with pytest.raises(MismatchError, match="no tokens"):
        head_of(type(task)(histogram, task.folder, task.arrays))


def test_shown_scans_are_successes_and_failures_by_the_rule(probe):
    task, _ = probe
    rows = choose(task, 2)
    threshold = task.info.thresholds["sdh"]
    assert all(row["y_true"] == 1 and row["split"] == "test" for row in rows)
    missed = [row for row in rows if row["y_score"] < threshold]
    assert len(missed) <= 1
    assert len({row["scan_id"] for row in rows}) == len(rows)


def test_the_patients_right_is_on_the_left_and_anterior_is_up():
    axial = np.zeros((10, 8), dtype=np.float32)
    axial[9, 7] = 1  # most anterior, most to the patient's right
    assert radiological(axial)[0, 0] == 1


def test_a_montage_has_the_true_shape_and_shows_the_map_in_colour():
    scan = ball()
    picture = matplotlib.image.imread(io.BytesIO(montage(scan.hu, [], (3.3, 3.3, 3.3))))
    height, width = picture.shape[:2]
    assert height / (width / 8) == pytest.approx(64 / 48, rel=0.02)
    heat = np.zeros(GRID.shape_zyx, dtype=np.float32)
    heat[:, 40:, 30:] = 1  # anterior right of the patient
    both = matplotlib.image.imread(io.BytesIO(montage(scan.hu, [heat], (3.3, 3.3, 3.3))))
    colour = np.ptp(both[..., :3], axis=2)
    middle = colour[height:, width * 4 // 8 : width * 5 // 8]
    quarter = middle.shape[0] // 2, middle.shape[1] // 2
    assert middle[: quarter[0], : quarter[1]].mean() > 5 * middle[quarter[0] :, quarter[1] :].mean()


def test_slices_are_taken_from_the_head_and_not_from_the_air():
    places = shown_slices(ball(radius=10).hu, 5)
    assert len(places) == 5
    assert places == sorted(places)
    assert 14 < places[0] < places[-1] < 34
