"""A head of known geometry comes out at its place, in its HU, in its size, without its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.errors import GeometryError, Refusal
from headct.volume.canonical import to_canonical, to_native
from headct.volume.head import find_head
from headct.volume.preprocessing import PRESETS, Preprocessing
from headct.volume.resample import closest_ras
from headct.volume.volume import AIR_HU, Volume

GRID = Preprocessing(shape_zyx=(64, 80, 64), spacing_mm_zyx=(3.0, 3.0, 3.0))
"""Room for the whole head."""


def test_landmark_place_and_side(model: Any, scanner_head: Volume) -> None:
    canonical = to_canonical(scanner_head, GRID)
    assert np.abs(model.find_landmark_mm(canonical) - model.landmark_mm).max() < 1.5
    assert canonical.hu.dtype == np.int16
    index = np.linalg.solve(canonical.affine_zyx, [*model.landmark_mm, 1])[:3]
    z, y, x = index.round().astype(int)
    assert x > GRID.shape_zyx[2] / 2, "the patient's right is at high x"
    assert canonical.hu[z, y, x] > 150
    assert canonical.provenance[-1]["resampling"] == "separable"


def test_grid_is_centred_on_the_head_and_aligned_at_the_vertex(
    model: Any, scanner_head: Volume
) -> None:
    canonical = to_canonical(scanner_head, GRID)
    middle = (np.array(GRID.shape_zyx) - 1) / 2
    centre = canonical.affine_zyx @ [*middle, 1]
    np.testing.assert_allclose(centre[1:3], model.centre_mm[1:], atol=2.0)
    top_mm = canonical.affine_zyx[0, 3] + 3.0 * (GRID.shape_zyx[0] - 0.5)
    assert top_mm == pytest.approx(model.centre_mm[0] + model.radii_mm[0] + 8, abs=2.0)


def test_size_in_mm_is_kept(model: Any, scanner_head: Volume) -> None:
    for name in ("demo", "small"):
        canonical = to_canonical(scanner_head, PRESETS[name])
        bone = np.argwhere(canonical.hu > 400)
        extent = (np.ptp(bone, axis=0) + 1) * PRESETS[name].spacing_mm_zyx
        np.testing.assert_allclose(extent[1:], 2 * 0.93 * model.radii_mm[1:], atol=5)


def test_homogeneous_tissue_keeps_its_hu(model: Any, scanner_head: Volume) -> None:
    canonical = to_canonical(scanner_head, GRID)
    inside = (model.depth_on(canonical) < 0.75) & model.far_from_landmark(canonical)
    assert np.unique(canonical.hu[inside]).tolist() == [model.brain_hu]


def test_table_is_taken_off_and_outside_is_air(model: Any, scanner_head: Volume) -> None:
    canonical = to_canonical(scanner_head, GRID)
    table = (canonical.hu > -300) & (model.depth_on(canonical) > 1.08)
    assert table.sum() < 40, f"{table.sum()} voxels of the table are left"
    assert canonical.hu[0].max() == AIR_HU
    assert canonical.hu.min() == AIR_HU


@settings(max_examples=8, deadline=None)
@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    step_mm=st.floats(3.0, 6.0),
    pixel_mm=st.floats(2.4, 3.4),
    tilt_degrees=st.sampled_from([0.0, 0.0, -18.5, 11.0, 25.0]),
    turn_degrees=st.sampled_from([0.0, 0.0, 8.0]),
)
def test_any_geometry_gives_the_same_place(
    model: Any,
    order: list[int],
    signs: tuple[int, int, int],
    step_mm: float,
    pixel_mm: float,
    tilt_degrees: float,
    turn_degrees: float,
) -> None:
    """Spacing, axis order, flips, gantry tilt and an oblique frame change nothing in the world."""
    tilt, turn = np.deg2rad([tilt_degrees, turn_degrees])
    axes = np.diag([step_mm, pixel_mm, pixel_mm])
    axes[:2, 1] = pixel_mm * np.array([np.sin(tilt), np.cos(tilt)])
    rotation = np.eye(3)
    rotation[1:, 1:] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    shape = np.array([round(230 / step_mm), round(230 / pixel_mm), round(220 / pixel_mm)])
    matrix = (rotation @ axes * signs)[:, order]
    shape = shape[order]
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = model.centre_mm - matrix @ ((shape - 1) / 2)
    canonical = to_canonical(model.on(affine, tuple(shape), table=False), GRID)
    assert np.abs(model.find_landmark_mm(canonical) - model.landmark_mm).max() < 1.5
    middle = canonical.affine_zyx @ [*(np.array(GRID.shape_zyx) - 1) / 2, 1]
    np.testing.assert_allclose(middle[1:3], model.centre_mm[1:], atol=4.0)


def test_same_head_on_two_scanners_is_nearly_the_same(model: Any) -> None:
    thin = model.on(np.diag([2.0, 1.8, 1.8, 1.0]) @ _origin(-75, -58, -45), (100, 125, 100))
    thick = model.on(np.diag([5.0, 2.3, 2.3, 1.0]) @ _origin(-30, -45, -37), (40, 95, 82))
    a, b = (to_canonical(volume, GRID) for volume in (thin, thick))
    np.testing.assert_allclose(a.affine_zyx[:3, 3], b.affine_zyx[:3, 3], atol=2.5)


def _origin(z: float, y: float, x: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = (z, y, x)
    return matrix


def test_it_can_be_undone(model: Any, scanner_head: Volume) -> None:
    canonical = to_canonical(scanner_head, GRID)
    back = to_native(canonical)
    assert back.shape_zyx == scanner_head.shape_zyx
    np.testing.assert_array_equal(back.affine_zyx, scanner_head.affine_zyx)
    brain = np.abs(back.hu - model.brain_hu) < 1
    assert brain.sum() > 5000
    assert (scanner_head.hu[brain] == model.brain_hu).mean() > 0.99
    with pytest.raises(GeometryError, match="no canonical step"):
        to_native(scanner_head)


def test_no_head_is_refused() -> None:
    air = Volume(np.full((20, 30, 30), -1000, np.int16), np.diag([4.0, 4, 4, 1]))
    with pytest.raises(Refusal) as caught:
        to_canonical(air, GRID)
    assert caught.value.code == "not-head"


def test_input_is_left_alone(scanner_head: Volume) -> None:
    before = scanner_head.hu.copy()
    to_canonical(scanner_head, GRID)
    np.testing.assert_array_equal(scanner_head.hu, before)


def test_vertex_is_found_between_thick_slices(model: Any) -> None:
    true_mm = model.centre_mm[0] + model.radii_mm[0]
    errors = []
    for start_mm in np.arange(-140.0, -132.0, 2.0):
        affine = np.array([[8.0, 0, 0, start_mm], [0, 2.2, 0, -90], [0, 0, 2.2, -80], [0, 0, 0, 1]])
        volume = model.on(affine, (28, 95, 80), table=False)
        head = find_head(*closest_ras(volume.hu, volume.affine_zyx))
        assert head is not None
        errors.append(head.vertex_mm - true_mm)
    assert np.abs(errors).max() < 3.0
