"""Views cut out of scans: crop, pose and the scanner's point spread in one resampling per view.

Three paths give the same result where they apply. With rotation a view is one trilinear sampling.
Without, the whole map (crop, shift, zoom, flip, and the scanner's point spread of `spread`) is one
small matrix per axis, four times faster on a CPU. Without zoom and shift it is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from headct.volume.volume import AIR_HU, Zyx

Shape = tuple[int, int, int]
Path = Literal["slice", "axes", "sample"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where n views of one shape lie in their source volumes.

    Attributes:
        centre_voxel: [n 3] float32, source index (z, y, x) of the view's centre.
        step: [n 3] float32, source voxels per view voxel; negative where flipped.
        rotation: [n 3 3] float32, acts on source mm; identity without rotation.
        shape_zyx: voxels of each view.
        spacing_mm_zyx: voxel size.
        source_shape_zyx: voxels of the source.
    """

    centre_voxel: Tensor
    step: Tensor
    rotation: Tensor
    shape_zyx: Shape
    spacing_mm_zyx: Zyx
    source_shape_zyx: Shape

    def axis_mm(self, axis: int) -> Tensor:
        """[n size] mm of the view's voxels along an axis from the source's centre, unrotated."""
        middle = (self.source_shape_zyx[axis] - 1) / 2
        return (self._source_index(axis) - middle) * self.spacing_mm_zyx[axis]

    def below_top_mm(self) -> Tensor:
        """[n z] mm from the top of the field of view downwards."""
        return self.source_shape_zyx[0] / 2 * self.spacing_mm_zyx[0] - self.axis_mm(0)

    def axis_operator(self, axis: int) -> Tensor:
        """[n size source] linear interpolation along one axis; rows outside the source are 0."""
        source = torch.arange(self.source_shape_zyx[axis], device=self.step.device)
        distance = (self._source_index(axis)[..., None] - source).abs()
        return (1.0 - distance).clamp_(min=0.0)

    def _source_index(self, axis: int) -> Tensor:
        n = self.shape_zyx[axis]
        offset = torch.arange(n, device=self.step.device) - (n - 1) / 2
        return self.centre_voxel[:, axis, None] + self.step[:, axis, None] * offset

    def sampling_grid(self) -> Tensor:
        """[n z y x 3] for `grid_sample` (x, y, z order, align_corners False)."""
        mm = row(self.spacing_mm_zyx, self.step.device)
        size = row(self.source_shape_zyx, self.step.device)
        axes = (
            self.rotation * (mm * self.step)[:, None, :] / mm[:, None]
        )  # [n 3 3] voxels per voxel
        axes = axes * (2.0 / size)[:, None]
        grid = ((self.centre_voxel + 0.5) * (2.0 / size) - 1.0)[:, None, None, None, :]
        for axis, n in enumerate(self.shape_zyx):
            offset = torch.arange(n, device=self.step.device) - (n - 1) / 2
            shape = [1, 1, 1, 1, 1]
            shape[axis + 1] = n
            grid = grid + offset.view(shape) * axes[:, None, None, None, :, axis]
        return grid.flip(-1)


def rotation_matrix(rotation_deg: Tensor) -> Tensor:
    """[n 3 3] in (z, y, x) order from rotations about the z, then y, then x axis, [n 3] degrees."""
    matrix = torch.eye(3, device=rotation_deg.device)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        angle = torch.deg2rad(rotation_deg[:, axis])
        turn = torch.eye(3, device=rotation_deg.device).repeat(len(angle), 1, 1)
        turn[:, i, i] = turn[:, j, j] = angle.cos()
        turn[:, i, j], turn[:, j, i] = -angle.sin(), angle.sin()
        matrix = turn @ matrix
    return matrix


def cut(scans: Tensor, placement: Placement, spread: Sequence[Tensor | None], path: Path) -> Tensor:
    """Views of scans, each resampled once.

    Args:
        scans: [b z y x] HU, float32.
        placement: of n = b v views, those of one scan side by side.
        spread: per axis an operator [n size size] on the view's voxels (point spread), or None.
        path: how to cut; "slice" takes whole voxels and knows no zoom or rotation.

    Returns:
        [n z' y' x'] HU; AIR_HU outside the scan.
    """
    if path == "slice":
        return apply_axes(_slices(scans, placement), spread)
    views_each = len(placement.step) // len(scans)
    above_air = (scans - AIR_HU)[:, None].expand(-1, views_each, -1, -1, -1).flatten(0, 1)
    if path == "sample":
        grid = placement.sampling_grid()
        sampled = F.grid_sample(above_air[:, None], grid, align_corners=False)[:, 0]
        return apply_axes(sampled, spread).add_(AIR_HU)
    operators = [placement.axis_operator(axis) for axis in range(3)]
    merged = [
        operator if psf is None else psf @ operator
        for psf, operator in zip(spread, operators, strict=True)
    ]
    return apply_axes(above_air, merged).add_(AIR_HU)


def _slices(scans: Tensor, placement: Placement) -> Tensor:
    """[n z' y' x'] crops inside the scans at whole voxels, mirrored where they step backwards."""
    half = (row(placement.shape_zyx, scans.device) - 1) / 2
    starts = (placement.centre_voxel - half).round().long().tolist()
    mirrored = (placement.step < 0).tolist()
    views_each = len(starts) // len(scans)
    views = []
    for i, (start, mirror) in enumerate(zip(starts, mirrored, strict=True)):
        box = [slice(a, a + n) for a, n in zip(start, placement.shape_zyx, strict=True)]
        view = scans[i // views_each][tuple(box)]
        axes = [axis for axis in range(3) if mirror[axis]]
        views.append(view.flip(axes) if axes else view)
    return torch.stack(views)


def apply_axes(hu: Tensor, operators: Sequence[Tensor | None]) -> Tensor:
    """One matrix per axis, [n out in], applied to [n z y x]; None leaves an axis as it is."""
    on_z, on_y, on_x = operators
    n = len(hu)
    if on_z is not None:
        hu = torch.bmm(on_z, hu.flatten(2)).view(n, -1, *hu.shape[2:])
    if on_x is not None:
        hu = torch.bmm(hu.flatten(1, 2), on_x.mT).view(*hu.shape[:3], -1)
    if on_y is not None:
        z, y, x = hu.shape[1:]
        columns = hu.transpose(1, 2).reshape(n, y, z * x)
        hu = torch.bmm(on_y, columns).view(n, -1, z, x).transpose(1, 2).contiguous()
    return hu


def row(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers per axis as a float32 tensor."""
    return torch.tensor(values, dtype=torch.float32, device=device)
