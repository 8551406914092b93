"""The canonical volume depends on where the voxels are, not on how the array stores them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import acquisition_grid, draw_scan, render_scan
from headct.volume.canonical import to_canonical
from headct.volume.preprocessing import PRESETS
from headct.volume.volume import Volume


@pytest.fixture(scope="module")
def volume() -> Volume:
    preset = load_preset("demo", ["max_matrix=64"])
    spec = draw_scan(preset, load_site("hospital-a"), 5, 3, findings={"iph": 1.0})
    (n_z, _, _), affine = acquisition_grid(spec)
    shape = (n_z, 64, 64)
    affine = affine.copy()
    size = np.linalg.norm(affine[:3, 1:3], axis=0)
    affine[:3, 1:3] *= 3.6 / size
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Volume(render_scan(spec, shape, affine, masks=False).hu, affine)


def stored_as(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same voxels in the same places, with array axes permuted and reversed."""
    hu = volume.hu.transpose(order)
    affine = volume.affine_zyx[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            hu = np.flip(hu, axis)
            affine[:3, 3] += affine[:3, axis] * (hu.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(hu), affine)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(list(permutations(range(3)))), st.tuples(*[st.booleans()] * 3))
def test_any_order_of_axes_and_voxels_gives_the_same_canonical_volume(volume, order, flips):
    expected = to_canonical(volume, PRESETS["demo"])
    found = to_canonical(stored_as(volume, order, flips), PRESETS["demo"])
    assert (expected.hu > 0).mean() > 0.2
    np.testing.assert_allclose(found.affine_zyx, expected.affine_zyx, atol=1e-4)
    difference = np.abs(found.hu.astype(int) - expected.hu)
    assert difference.max() <= 1
