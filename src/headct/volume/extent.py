"""How far a head reaches: its top between slices, the box of its cranium."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headct.volume.masks import Mask
from headct.volume.volume import Zyx

CRANIUM_MM = 100.0
"""The box looks at this much below the vertex: cranium only, alike in every coverage."""
CAP_CM2 = 60.0
"""Sections smaller than this belong to the cap at the vertex."""


def vertex(mask: Mask, affine: NDArray[np.float64]) -> float:
    """Top of the head between slices: near the top of a cap its section grows linearly downwards.

    Source:
        Area of a section h below the top of a paraboloid of curvature radius R: 2 pi R h.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    areas_cm2 = mask.sum(axis=(1, 2)) * (spacing_mm[1] * spacing_mm[2] / 100)
    step_mm = float(affine[0, 0])
    top = int(np.flatnonzero(areas_cm2)[-1])
    middle = np.argwhere(mask[top]).mean(axis=0)
    top_mm = float(affine[0] @ [top, *middle, 1.0])
    down = areas_cm2[top::-1]
    large = np.flatnonzero(down > CAP_CM2)
    n = int(large[0]) + 1 if large.size else down.size
    if n < 2:
        return top_mm + step_mm / 2
    slope, at_top = np.polyfit(np.arange(n) * step_mm, down[:n], 1)
    above_mm = at_top / slope if slope > 0 else 0.0
    return top_mm + float(np.clip(above_mm, 0.0, step_mm))


def cranium_box(
    core: Mask, affine: NDArray[np.float64], vertex_mm: float
) -> tuple[tuple[float, float], Zyx]:
    """Centre (A, R) and size of the box of the solid head down to CRANIUM_MM below the vertex."""
    z, y, x = np.ogrid[tuple(map(slice, core.shape))]
    superior_mm = (affine[0, 0] * z + affine[0, 1] * y + affine[0, 3]) + affine[0, 2] * x
    cranium_mm = _ends_mm(core & (superior_mm > vertex_mm - CRANIUM_MM), affine)
    low, high = cranium_mm.min(axis=0), cranium_mm.max(axis=0)
    a, r = (low + high)[1:] / 2
    size = high - low + np.abs(np.diag(affine)[:3])
    height_mm = vertex_mm - float(_ends_mm(core, affine)[:, 0].min())
    return (float(a), float(r)), (height_mm, float(size[1]), float(size[2]))


def _ends_mm(mask: Mask, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World mm of the voxels at the ends of the rows of a mask: all its extremes are among them."""
    ends = mask.copy()
    ends[:, :, 1:-1] &= ~(mask[:, :, :-2] & mask[:, :, 2:])
    places = np.unravel_index(np.flatnonzero(ends), ends.shape)
    return np.asarray(np.stack(places, axis=1) @ affine[:3, :3].T + affine[:3, 3])
