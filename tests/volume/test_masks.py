"""Every mask operation against scipy.ndimage, on random masks that touch the border."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from headct.volume.masks import (
    between,
    box_of,
    dilated,
    dilated_by_box,
    dilated_within,
    eroded_by_box,
)

CROSS = ndimage.generate_binary_structure(3, 1)
SHAPES = [(9, 13, 11), (2, 30, 5), (1, 1, 7)]


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 1.5) > 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_as_scipy(shape: tuple[int, ...], seed: int) -> None:
    mask, limits = blobs(shape, seed), blobs(shape, seed + 100)
    in_plane = CROSS.copy()
    in_plane[[0, 2]] = False
    np.testing.assert_array_equal(dilated(mask), ndimage.binary_dilation(mask, CROSS))
    np.testing.assert_array_equal(dilated(mask, (1, 2)), ndimage.binary_dilation(mask, in_plane))
    np.testing.assert_array_equal(
        dilated_within(mask, limits, 3),
        ndimage.binary_dilation(mask, CROSS, iterations=3, mask=limits),
    )
    for sizes in [(1, 3, 3), (3, 1, 7), (5, 17, 11)]:
        eroded = ndimage.minimum_filter(mask, size=sizes, mode="nearest")
        np.testing.assert_array_equal(eroded_by_box(mask, sizes), eroded)
        grown = ndimage.maximum_filter(mask, size=sizes, mode="constant")
        np.testing.assert_array_equal(dilated_by_box(mask, sizes), grown)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_is_from_the_first_to_the_last(axis: int) -> None:
    mask = blobs((6, 9, 8), 1)
    mask[2], mask[:, 3], mask[:, :, 4] = False, False, False
    before = np.logical_or.accumulate(mask, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis)
    np.testing.assert_array_equal(between(mask, axis), before & after)


def test_box_holds_the_mask_and_no_more() -> None:
    mask = np.zeros((6, 9, 8), bool)
    assert box_of(mask) is None
    mask[2, 3, 4] = mask[4, 0, 5] = True
    assert box_of(mask) == (slice(2, 5), slice(0, 4), slice(4, 6))
    assert box_of(mask, margin=2) == (slice(0, 6), slice(0, 6), slice(2, 8))
