"""Do neighbouring slices fit? Finds a slice of another patient, and slices that changed places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TISSUE_HU = (-200.0, 300.0)
BLOCKS = 24
"""Slices are compared as this many block means a side: noise and fine detail average out."""
STRANGER, NEARER = 1.25, 1.08
"""The neighbours of a strange slice are nearer to each other than to it by these factors: by the
first in the mean, by the second each of them."""
SWAPPED = 0.8
"""Two neighbours in the other order fit their surroundings by this factor better."""
BREAK = 2.2
"""One step between slices that is larger than both next to it by this factor."""
LEAST_HU = 6.0
"""Differences below this mean, in HU, are never remarked on."""
FLOOR_HU = 2.0


def strange_slices(hu: NDArray[np.int16]) -> list[int]:
    """Indices of slices that do not fit between their neighbours; empty for a plain scan.

    Anatomy changes steadily from slice to slice: two slices on either side of a third differ by
    more than either differs from it. Only a suspicion: a scan is flagged for it, not refused.

    Args:
        hu: [slice row column], in order.
    """
    small = _block_means(hu)
    shown = np.flatnonzero((small > TISSUE_HU[0]).any(axis=1))
    if shown.size < 4:
        return []
    first = int(shown[0])
    small = small[first : shown[-1] + 1]  # blank slices at the ends are no anatomy
    one, two = _distances(small, 1), _distances(small, 2)
    found = set(_strangers(one, two)) | set(_swapped(one, two)) | set(_breaks(one))
    return sorted(first + z for z in found)


def _strangers(one: NDArray[np.float32], two: NDArray[np.float32]) -> list[int]:
    nearest = np.minimum(one[:-1], one[1:])
    apart = np.maximum(two, FLOOR_HU)
    strange = (one[:-1] + one[1:] > 2 * STRANGER * apart) & (nearest > NEARER * apart)
    strange &= nearest > LEAST_HU
    return (np.flatnonzero(strange) + 1).tolist()


def _swapped(one: NDArray[np.float32], two: NDArray[np.float32]) -> list[int]:
    """Of slices a b c d, whether a c b d is the better order; the step b c is the same in both."""
    as_they_are = one[:-2] + one[2:]
    other_way = two[:-1] + two[1:]
    better = (other_way < SWAPPED * as_they_are) & (as_they_are > LEAST_HU)
    return (np.flatnonzero(better) + 1).tolist()


def _breaks(one: NDArray[np.float32]) -> list[int]:
    around = np.maximum(one[:-2], one[2:])
    broken = (one[1:-1] > BREAK * np.maximum(around, FLOOR_HU)) & (one[1:-1] > 3 * LEAST_HU)
    return (np.flatnonzero(broken) + 1).tolist()


def _distances(small: NDArray[np.float32], apart: int) -> NDArray[np.float32]:
    """Mean absolute difference of slices `apart` places apart, HU, where there is tissue."""
    a, b = small[:-apart], small[apart:]
    tissue = np.maximum(a, b) > TISSUE_HU[0]
    n = np.maximum(tissue.sum(axis=1), small.shape[1] // 20)
    return np.asarray((np.abs(a - b) * tissue).sum(axis=1) / n)


def _block_means(hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """[slice block], clipped to tissue."""
    n, rows, columns = hu.shape
    high, wide = max(1, rows // BLOCKS), max(1, columns // BLOCKS)
    strides = max(1, high // 6), max(1, wide // 6)
    cut = hu[:, : rows // high * high, : columns // wide * wide]
    out = np.empty((n, (rows // high) * (columns // wide)), np.float32)
    for z, image in enumerate(cut):
        blocks = image.reshape(rows // high, high, columns // wide, wide)
        thin = blocks[:, :: strides[0], :, :: strides[1]].clip(*map(int, TISSUE_HU))
        out[z] = thin.mean(axis=(1, 3), dtype=np.float32).ravel()
    return out
