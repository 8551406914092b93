"""Slices are averages over their thickness: of which sub-slices, and where these lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headct.phantom.fields import Floats

SUBSLICE_MM = 3.5
"""Slices further apart than this are averaged from several sub-slices."""


def subslices(
    shape_zyx: tuple[int, int, int], affine: NDArray[np.float64], thickness_mm: float
) -> tuple[Floats, NDArray[np.float64]]:
    """Averaging matrix [slices, sub-slices] over the slice thickness; the sub-slices' affine."""
    step = float(np.linalg.norm(affine[:3, 0]))
    n_sub = max(1, int(np.ceil(step / SUBSLICE_MM)))
    fine = step / n_sub
    width = max(thickness_mm, step)
    extra = max(0, int(np.ceil((width - step) / 2 / fine - 1e-6)))
    n_fine = shape_zyx[0] * n_sub + 2 * extra
    place = (np.arange(n_fine) - extra - (n_sub - 1) / 2) * fine
    centre = np.arange(shape_zyx[0])[:, None] * step
    low, high = centre - width / 2, centre + width / 2
    overlap = np.minimum(high, place + fine / 2) - np.maximum(low, place - fine / 2)
    average = np.clip(overlap, 0, None)
    average /= average.sum(axis=1, keepdims=True)
    moved = affine.copy()
    moved[:3, 0] = affine[:3, 0] / n_sub
    moved[:3, 3] = affine[:3, 3] + affine[:3, 0] * (place[0] / step)
    average[np.abs(average) < 1e-6] = 0
    return average.astype(np.float32), moved
