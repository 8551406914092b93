"""Three operators on a volume, block by block, against one product over all voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headct.volume.separable import Operator, apply_operators


def banded(n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    place = (np.arange(n_out)[:, None] + 0.5) * n_in / n_out
    near = np.abs(place - np.arange(n_in)[None, :] - 0.5) < max(2.0, n_in / n_out)
    return rng.normal(size=(n_out, n_in)) * near


def product(hu: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    return np.einsum("zyx,az,by,cx->abc", hu.astype(float), *matrices, optimize=True)


@pytest.mark.parametrize("shape", [(5, 33, 40), (20, 21, 18), (70, 9, 35)])
@pytest.mark.parametrize("flips", list(itertools.product([1, -1], repeat=3)))
def test_as_one_product_in_any_memory_order(
    shape: tuple[int, int, int], flips: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    view = tuple(slice(None, None, flip) for flip in flips)
    hu = rng.integers(-1000, 1000, (50, 40, 37)).astype(np.int16).transpose(0, 2, 1)[view]
    matrices = [banded(n, m, rng) for n, m in zip(shape, hu.shape, strict=True)]
    got = apply_operators(hu, [Operator(matrix) for matrix in matrices])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, product(hu, matrices), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("n_slices", [12, 60])
def test_values_are_prepared_first_and_the_volume_is_left_alone(n_slices: int) -> None:
    rng = np.random.default_rng(1)
    hu = rng.integers(-1000, 1000, (30, 25, 28)).astype(np.float32)
    before = hu.copy()
    matrices = [banded(n, m, rng) for n, m in zip((n_slices, 20, 20), hu.shape, strict=True)]

    def prepare(values: np.ndarray) -> None:
        np.clip(values, 0, 80, out=values)

    got = apply_operators(hu, [Operator(matrix) for matrix in matrices], prepare=prepare)
    np.testing.assert_allclose(got, product(hu.clip(0, 80), matrices), rtol=1e-4, atol=0.01)
    np.testing.assert_array_equal(hu, before)


@pytest.mark.parametrize("n_slices", [12, 60])
def test_wanted_voxels_are_right_whatever_is_left_out(n_slices: int) -> None:
    rng = np.random.default_rng(2)
    hu = rng.integers(-1000, 1000, (30, 60, 70)).astype(np.int16)
    shape = (n_slices, 40, 50)
    matrices = [banded(n, m, rng) for n, m in zip(shape, hu.shape, strict=True)]
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    wanted = z**2 + y**2 + x**2 < 0.6
    operators = [Operator(matrix) for matrix in matrices]
    got = apply_operators(hu, operators, wanted=wanted)
    right = product(hu, matrices)
    np.testing.assert_allclose(got[wanted], right[wanted], rtol=1e-4, atol=0.05)
    nothing = apply_operators(hu, operators, wanted=np.zeros(shape, bool))
    assert nothing.shape == shape
