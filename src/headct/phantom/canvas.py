"""A block of voxels being painted, with the place of each voxel in the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headct.phantom.fields import Floats, Xyz

Box = tuple[slice, slice, slice]
"""Index ranges along z, y and x."""


@dataclass(frozen=True)
class Canvas:
    """HU of a block and the coordinates of its voxels.

    Attributes:
        hu: [z y x] float32, painted in place.
        x: y: z: head frame in mm, [z y x]; the skull is where these say.
        xb: yb: zb: the same with the mass effect undone: the brain is where these say. The very
            same arrays as x, y, z where nothing is displaced.
        blur_mm: width over which a surface is mixed: about one voxel.
        index_from_head: 4x4, (z, y, x, 1) index from head (x, y, z, 1), deformation left out.
        margin_mm: how far the deformation and the mass effect can move a point.
    """

    hu: Floats
    x: Floats
    y: Floats
    z: Floats
    xb: Floats
    yb: Floats
    zb: Floats
    blur_mm: float
    index_from_head: NDArray[np.float64]
    margin_mm: float

    def within(self, centre: Xyz, half_mm: Xyz) -> Canvas | None:
        """The part of the canvas around a box of the head frame, as views; None if outside."""
        box = self.box(centre, half_mm)
        return None if box is None else self.part(box)

    def box(self, centre: Xyz, half_mm: Xyz) -> Box | None:
        """Index ranges that hold a box of the head frame; None if it is outside the canvas."""
        matrix = self.index_from_head
        middle = matrix[:3, :3] @ np.asarray(centre) + matrix[:3, 3]
        reach = np.abs(matrix[:3, :3]) @ (np.asarray(half_mm) + self.margin_mm + self.blur_mm / 2)
        low = np.maximum(np.ceil(middle - reach), 0).astype(int)
        high = np.minimum(np.floor(middle + reach) + 1, self.hu.shape).astype(int)
        if (low >= high).any():
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return z, y, x

    def part(self, box: Box) -> Canvas:
        """A part of the canvas, as views."""
        start = np.array([s.start for s in box])
        matrix = self.index_from_head.copy()
        matrix[:3, 3] -= start
        same = self.xb is self.x
        x, y, z = self.x[box], self.y[box], self.z[box]
        return Canvas(
            hu=self.hu[box],
            x=x,
            y=y,
            z=z,
            xb=x if same else self.xb[box],
            yb=y if same else self.yb[box],
            zb=z if same else self.zb[box],
            blur_mm=self.blur_mm,
            index_from_head=matrix,
            margin_mm=self.margin_mm,
        )
