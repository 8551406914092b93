"""The pose of a head is found, is undone, and is left alone where it is unsure."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from headct.phantom.plan import archive_sites
from headct.phantom.profile import load_preset
from headct.phantom.render import acquisition_grid, draw_scan, render_scan
from headct.phantom.scan import ScanSpec, canonical_affine
from headct.volume.canonical import to_canonical, to_native
from headct.volume.head import find_head
from headct.volume.pose import find_pose
from headct.volume.preprocessing import PRESETS, Preprocessing
from headct.volume.read import read_series
from headct.volume.resample import closest_ras, resample, resample_turned
from headct.volume.volume import AIR_HU, Volume

ALIGNED = PRESETS["demo"].model_copy(update={"pose": "aligned"})
FULL_POSE = ["max_matrix=96", "min_slice_mm=4", "rotation_factor=1", "shift_factor=1"]


@cache
def scanned(patient: int) -> tuple[ScanSpec, Volume]:
    preset = load_preset("canonical", FULL_POSE)
    sites = archive_sites(preset)
    spec = draw_scan(preset, sites[patient % 2], 3, patient)
    shape, affine = acquisition_grid(spec)
    return spec, Volume(render_scan(spec, shape, affine, masks=False).hu, affine)


def head_to_world(spec: ScanSpec) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = spec.acquisition.rotation[::-1, ::-1]
    matrix[:3, 3] = spec.acquisition.shift_mm[::-1]
    return matrix


def wanted_affine(spec: ScanSpec, grid: Preprocessing) -> np.ndarray:
    """The grid as it lies on the same head in a scanner where it is not turned or shifted."""
    still = replace(spec.acquisition, rotation_deg=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0))
    return head_to_world(spec) @ canonical_affine(replace(spec, acquisition=still), grid)


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (a, b))
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def test_known_poses_are_found() -> None:
    turned, shifted, before = [], [], []
    for patient in range(8):
        spec, volume = scanned(patient)
        found, wanted = to_canonical(volume, ALIGNED), wanted_affine(spec, ALIGNED)
        assert found.flags == ()
        middle = [*(np.array(ALIGNED.shape_zyx) - 1) / 2, 1]
        turned.append(angle_deg(found.affine_zyx, wanted))
        shifted.append(np.linalg.norm((found.affine_zyx - wanted)[:3] @ middle))
        before.append(angle_deg(np.eye(4), wanted))
    assert np.median(before) > 4, "the phantoms are turned"
    assert np.median(turned) < 2
    assert max(turned) < 5
    assert np.median(shifted) < 2.5


def test_the_grid_takes_the_axes_of_the_head() -> None:
    """The left half of the grid is the left half of the head: the mirror image is alike."""
    alike = []
    for pose in ("scanner", "aligned"):
        grid = ALIGNED.model_copy(update={"pose": pose})
        hu = to_canonical(scanned(6)[1], grid).hu.astype(float).clip(-200, 800)
        alike.append(np.corrcoef(hu.ravel(), hu[:, :, ::-1].ravel())[0, 1])
    assert alike[1] > alike[0]


def test_it_is_recorded_and_can_be_undone() -> None:
    volume = scanned(1)[1]
    found = to_canonical(volume, ALIGNED)
    pose = found.provenance[-1]["pose"]
    assert pose["kind"] == "aligned"
    to_aligned = np.reshape(pose["to_aligned"], (4, 4))
    turn = to_aligned[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    axes = to_aligned @ found.affine_zyx
    np.testing.assert_allclose(axes[:3, :3], np.diag(ALIGNED.spacing_mm_zyx), atol=1e-9)
    back = to_native(found)
    assert back.shape_zyx == volume.shape_zyx
    np.testing.assert_array_equal(back.affine_zyx, volume.affine_zyx)
    smooth = ndimage.uniform_filter(volume.hu.astype(np.float32), 5)
    level = np.median(smooth[(smooth > 0) & (smooth < 80)])
    brain = ndimage.binary_erosion(np.abs(smooth - level) < 12, iterations=2)
    assert brain.sum() > 10_000
    assert abs(float((back.hu - volume.hu)[brain].mean())) < 0.5


@pytest.mark.parametrize("part", [slice(None, 12), slice(-12, None)], ids=["base", "vertex"])
def test_half_a_head_is_unsure_and_keeps_the_axes_of_the_scanner(part: slice) -> None:
    volume = scanned(1)[1]
    affine = volume.affine_zyx.copy()
    affine[:3, 3] += affine[:3, 0] * part.indices(len(volume.hu))[0]
    cut = Volume(volume.hu[part], affine)
    found, plain = to_canonical(cut, ALIGNED), to_canonical(cut, PRESETS["demo"])
    assert found.flags == ("pose-unsure",)
    assert found.provenance[-1]["pose"]["kind"] == "scanner"
    np.testing.assert_array_equal(found.hu, plain.hu)
    np.testing.assert_array_equal(found.affine_zyx, plain.affine_zyx)


REAL = Path(__file__).parents[3] / "shared/data/real"


@pytest.mark.skipif(not REAL.exists(), reason="the shared real scans are not here")
@pytest.mark.parametrize(
    ("name", "nod_deg"),
    [
        ("vhp_head_ct_quantised16.nii.gz", 21),
        ("siemens_anthropomorphic_head_2mm", 33),
        ("headsq_ge8800_hu", None),
        ("philips_skull_phantom_5mm", None),
    ],
)
def test_real_scans(name: str, nod_deg: float | None) -> None:
    """The whole heads were looked at: level, symmetric; a cut and an empty one are left alone."""
    pose = find_pose(_head(read_series(REAL / name)))
    assert pose.sure == (nod_deg is not None)
    if nod_deg is not None:
        turn = pose.to_aligned[:3, :3]
        assert np.rad2deg(np.arctan2(turn[1, 0], turn[1, 1])) == pytest.approx(nod_deg, abs=2)
        assert pose.reference == "adult"


def test_a_turned_frame_turns_the_pose() -> None:
    """The same voxels in a turned frame: the pose turns along, place and score stay."""
    volume = scanned(4)[1]
    a, b = np.deg2rad([9.0, -12.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    side = np.eye(4)
    side[1:3, 1:3] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    moved = replace(volume, affine_zyx=turn @ side @ volume.affine_zyx)
    poses = [find_pose(_head(v)) for v in (volume, moved)]
    assert poses[1].sure
    again = poses[1].to_aligned @ turn @ side
    assert angle_deg(again, poses[0].to_aligned) < 0.5
    assert np.abs(again - poses[0].to_aligned)[:3, 3].max() < 0.7


def _head(volume: Volume) -> Any:
    head = find_head(*closest_ras(volume.hu, volume.affine_zyx))
    assert head is not None
    return head


def test_pose_is_part_of_the_identity() -> None:
    assert ALIGNED.hash != PRESETS["demo"].hash


def turned_affine(degrees: float, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing_mm)
    affine[:3, 3] = (12.0, 9.0, 10.0)
    return affine


def test_turned_resampling_is_exact_for_planes() -> None:
    """A linear function is carried over without error, block means and slabs included."""
    native = np.diag([1.25, 0.5, 0.5, 1.0])
    index = np.moveaxis(np.indices((48, 90, 90)), 0, -1)
    hu = (index @ native[:3, :3]) @ [7.0, -5.0, 3.0]
    target = turned_affine(14.0, (4.0, 1.0, 1.0))
    out = resample_turned(hu.astype(np.float32), native, target, (8, 20, 20))
    place = np.moveaxis(np.indices(out.shape), 0, -1) @ target[:3, :3].T + target[:3, 3]
    np.testing.assert_allclose(out, place @ [7.0, -5.0, 3.0], atol=0.01)


def test_turned_resampling_does_not_alias() -> None:
    """Noise is averaged over the whole target voxel, as the separable path does."""
    rng = np.random.default_rng(0)
    hu = rng.normal(0, 100, (64, 160, 160)).astype(np.float32)
    native = np.diag([0.625, 0.5, 0.5, 1.0])
    flat = resample(hu, native, turned_affine(0.0, (4.0, 1.0, 1.0)), (6, 40, 40))
    turned = resample_turned(hu, native, turned_affine(8.0, (4.0, 1.0, 1.0)), (6, 40, 40))
    assert turned[1:-1].std() < 1.15 * flat[1:-1].std()


def test_outside_a_turned_grid_is_air() -> None:
    out = resample_turned(
        np.full((4, 4, 4), 50, np.int16), np.eye(4), turned_affine(30, (2.0, 1.0, 1.0)), (9, 9, 9)
    )
    assert (out == AIR_HU).mean() > 0.9
