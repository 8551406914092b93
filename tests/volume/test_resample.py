"""The operator of each axis against brute force, the separable path against the general one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headct.volume.resample import _general as general
from headct.volume.resample import axis_operator, block_mean, closest_ras, is_parallel, resample
from headct.volume.volume import AIR_HU


def diagonal(*spacing: float, origin: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def dense(n_in: int, n_out: int, step: float, start: float) -> np.ndarray:
    first, weights = axis_operator(n_in, n_out, step, start)
    full = np.zeros((n_out, n_in))
    full[:, first : first + weights.shape[1]] = weights
    return full


def test_same_grid_is_the_identity() -> None:
    np.testing.assert_array_equal(dense(7, 7, 1.0, 0.0), np.eye(7))


@pytest.mark.parametrize(("step", "start"), [(1.0, 0.3), (2.5, 0.75), (3.7, -1.2), (1.4, 5.0)])
def test_coarser_is_the_area_average(step: float, start: float) -> None:
    n_in, n_out, fine = 20, 6, 2000
    place = (np.arange(n_in * fine) + 0.5) / fine - 0.5
    expected = np.zeros((n_out, n_in))
    for i, centre in enumerate(start + step * np.arange(n_out)):
        inside = np.abs(place - centre) < step / 2
        counts = np.bincount(np.rint(place[inside]).astype(int), minlength=n_in)
        expected[i] = counts[:n_in] / fine / step
    np.testing.assert_allclose(dense(n_in, n_out, step, start), expected, atol=2e-3)


def test_finer_is_linear_interpolation() -> None:
    values = np.random.default_rng(0).normal(size=12)
    place = 0.4 + 0.3 * np.arange(30)
    got = dense(12, 30, 0.3, 0.4) @ values
    np.testing.assert_allclose(got, np.interp(place, np.arange(12), values), atol=1e-6)


def test_weights_sum_to_the_share_that_is_covered() -> None:
    assert dense(10, 5, 2.0, 0.5).sum(1) == pytest.approx(np.ones(5))
    assert dense(10, 3, 4.0, -0.5).sum(1) == pytest.approx([0.5, 1.0, 1.0])
    assert dense(4, 3, 1.0, 100.0).sum() == 0


def test_finest_pattern_does_not_alias() -> None:
    hu = np.where(np.indices((24, 24, 24)).sum(0) % 2, 100, -100).astype(np.int16)
    out = resample(hu, diagonal(1, 1, 1), diagonal(4, 4, 4, origin=(1.5, 1.5, 1.5)), (6, 6, 6))
    assert np.abs(out).max() < 1e-3


def test_outside_is_air_and_a_half_covered_voxel_is_half_air() -> None:
    hu = np.full((4, 4, 4), 100, np.int16)
    out = resample(hu, diagonal(1, 1, 1), diagonal(2, 2, 2, origin=(-0.5, 0.5, 0.5)), (4, 2, 2))
    assert out[3].max() == AIR_HU
    np.testing.assert_allclose(out[0], (100 + AIR_HU) / 2)
    np.testing.assert_allclose(out[1], 100)


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (1.0, 2.0, 0.7), (5.0, 0.5, 0.5)])
def test_separable_and_general_agree_on_a_smooth_volume(spacing: tuple[float, ...]) -> None:
    shape = tuple(round(60 / mm) for mm in spacing)
    native = diagonal(*spacing, origin=(-30, -30, -30))
    target = diagonal(2.3, 2.3, 2.3, origin=(-15, -15, -15))
    z, y, x = (-30 + mm * np.arange(n) for n, mm in zip(shape, spacing, strict=True))
    waves = np.sin(z / 14)[:, None, None] + np.cos(y / 12)[:, None] + np.sin(x / 13)
    hu = (waves * 300).astype(np.int16)
    one = resample(hu, native, target, (13, 13, 13))
    other = general(hu, np.linalg.inv(native) @ target, (13, 13, 13))
    assert np.abs(one - other).max() < 12


def test_block_mean_knows_where_its_blocks_are() -> None:
    ramp = np.arange(10, dtype=np.int16)[:, None, None] * np.ones((1, 4, 4), np.int16)
    blocks, to_block = block_mean(ramp, [2, 1, 1])
    place = np.linalg.inv(to_block) @ [1, 0, 0, 1]
    assert blocks[1, 0, 0] == pytest.approx(place[0])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_closest_ras_moves_no_voxel(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    hu = rng.integers(0, 1000, (3, 4, 5)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs)[:, order] * (2.0, 3.0, 4.0) + 0.1
    affine[:3, 3] = (7, 8, 9)
    view, turned = closest_ras(hu, affine)
    assert np.shares_memory(view, hu)
    assert (np.diag(turned)[:3] > 0).all()
    where = {tuple(np.round(affine @ [*i, 1], 6)): hu[i] for i in np.ndindex(hu.shape)}
    for i in np.ndindex(view.shape):
        assert where[tuple(np.round(turned @ [*i, 1], 6))] == view[i]


def test_parallel_allows_rounding_and_nothing_more() -> None:
    native, target = diagonal(1, 1, 1), diagonal(3, 3, 3)
    assert is_parallel((100, 100, 100), native, target)
    native[1, 0] = 0.001
    assert is_parallel((100, 100, 100), native, target)
    native[1, 0] = 0.01
    assert not is_parallel((100, 100, 100), native, target)
