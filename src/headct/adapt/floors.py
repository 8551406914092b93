"""Floors: what can be read off a scan without training, as feature tables for the same probe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headct.adapt.features import Vectors
from headct.volume.volume import Zyx
from headct.volume.window import BLOOD, BRAIN

HISTOGRAM_EDGES_HU = np.concatenate(
    [
        np.arange(-150, -10, 20),
        np.arange(-10, 110, 2),
        np.arange(110, 310, 20),
        [400, 700, 1100, 3072],
    ]
)
"""Fine where tissue and blood are, coarse in fat and bone; air, most of a volume, is left out."""
LOWEST_HU, HIGHEST_HU = -1024, 3071
BLOCK_MM = 26.4
BLOCK_WINDOWS = (BRAIN, BLOOD)


def histogram(hu: NDArray[np.int16]) -> Vectors:
    """Square root of the share of head voxels in each HU bin: [b z y x] -> `histogram` [b bins].

    The square root evens out the variance of counts, so that rare bins (blood) are not drowned.
    """
    bin_of = _bin_of_every_hu()
    bins = bin_of[hu.clip(LOWEST_HU, HIGHEST_HU).astype(np.int32) - LOWEST_HU]
    n_bins = len(HISTOGRAM_EDGES_HU) - 1
    counts = np.stack([np.bincount(scan.ravel(), minlength=n_bins + 1)[:n_bins] for scan in bins])
    share = counts / counts.sum(1, keepdims=True).clip(1)
    return {"histogram": np.sqrt(share).astype(np.float32)}


def _bin_of_every_hu() -> NDArray[np.int64]:
    """Bin of each HU from -1024 up; values outside the edges go into one bin past the last."""
    n_bins = len(HISTOGRAM_EDGES_HU) - 1
    levels = np.arange(LOWEST_HU, HIGHEST_HU + 1)
    bins = np.searchsorted(HISTOGRAM_EDGES_HU, levels, side="right") - 1
    return np.where((bins < 0) | (bins >= n_bins), n_bins, bins)


def blocks(hu: NDArray[np.int16], spacing_mm_zyx: Zyx) -> Vectors:
    """Mean of each block of about 26 mm in a brain and a blood window: -> `blocks` [b n].

    Voxels past the last whole block are left out.
    """
    size = [max(1, round(BLOCK_MM / mm)) for mm in spacing_mm_zyx]
    counts = [n // s for n, s in zip(hu.shape[1:], size, strict=True)]
    whole = hu[:, : counts[0] * size[0], : counts[1] * size[1], : counts[2] * size[2]]
    shape = [len(hu)] + [n for pair in zip(counts, size, strict=True) for n in pair]
    cut = whole.astype(np.float32).reshape(shape)  # [b Z z Y y X x]
    means = [window.apply(cut).mean((2, 4, 6)).reshape(len(hu), -1) for window in BLOCK_WINDOWS]
    return {"blocks": np.concatenate(means, axis=1)}
