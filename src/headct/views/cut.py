"""Views cut out of scans: crop, pose and the scanner's point spread in one resampling per view.

Three paths give the same result where they apply. With rotation a view is one trilinear sampling.
Without, the whole map (crop, shift, zoom, flip, and the scanner's point spread of `spread`) is one
small matrix per axis, faster on a CPU. Without zoom and shift it is a slice. A CPU makes one view
after another, in its cache, and does for each only what that view needs; a GPU takes all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from headct.views.sample import pad_to_sample, sample_affine
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

    def axes(self) -> Tensor:
        """[n 3 3] source voxels (row) per view voxel along each axis (column)."""
        mm = row(self.spacing_mm_zyx, self.step.device)
        return self.rotation * (mm * self.step)[:, None, :] / mm[:, None]

    def start_voxel(self) -> Tensor:
        """[n 3] source index (z, y, x) of the first voxel of each view."""
        half = (row(self.shape_zyx, self.step.device) - 1) / 2
        return self.centre_voxel - self.axes() @ half

    def sampling_grid(self) -> Tensor:
        """[n z y x 3] for `grid_sample` (x, y, z order, align_corners False)."""
        size = row(self.source_shape_zyx, self.step.device)
        axes = self.axes() * (2.0 / size)[:, None]
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
        scans: [b z y x] HU, int16 or float32.
        placement: of n = b v views, those of one scan side by side.
        spread: per axis an operator [n size size] on the view's voxels (point spread), or None.
        path: how to cut; "slice" takes whole voxels and knows no zoom or rotation.

    Returns:
        [n z' y' x'] HU; AIR_HU outside the scan.
    """
    if path == "slice":
        return apply_axes(_slices(scans, placement), spread)
    merged = list(spread)
    if path == "axes":
        operators = [placement.axis_operator(axis) for axis in range(3)]
        merged = [
            operator if psf is None else psf @ operator
            for psf, operator in zip(spread, operators, strict=True)
        ]
    above_air = scans - float(AIR_HU)
    if scans.device.type == "cpu":
        one_by_one = _sampled if path == "sample" else _on_axes
        return one_by_one(above_air, placement, merged).add_(AIR_HU)
    views_each = len(placement.step) // len(scans)
    above_air = above_air[:, None].expand(-1, views_each, -1, -1, -1).flatten(0, 1)
    if path == "sample":
        grid = placement.sampling_grid()
        above_air = F.grid_sample(above_air[:, None], grid, align_corners=False)[:, 0]
    return apply_axes(above_air, merged).add_(AIR_HU)


def _sampled(scans: Tensor, placement: Placement, spread: Sequence[Tensor | None]) -> Tensor:
    """Views cut with rotation, one by one, then spread."""
    views = scans.new_empty(len(placement.step), *placement.shape_zyx)
    starts, axes = placement.start_voxel(), placement.axes()
    views_each = len(views) // len(scans)
    for i, view in enumerate(views):
        if i % views_each == 0:
            padded = pad_to_sample(scans[i // views_each])
        sample_affine(padded, starts[i], axes[i], view)
    return apply_axes(views, spread)


def _on_axes(scans: Tensor, placement: Placement, operators: Sequence[Tensor | None]) -> Tensor:
    """Views cut with one matrix per axis, one by one, from the voxels that they depend on."""
    views = scans.new_empty(len(placement.step), *placement.shape_zyx)
    views_each = len(views) // len(scans)
    for i, view in enumerate(views):
        source, mine = scans[i // views_each], []
        for axis, operator in enumerate(operators):
            used = operator[i].any(0).nonzero()[:, 0] if operator is not None else None
            if used is None or len(used) == 0:
                mine.append(None if operator is None else operator[i])
                continue
            first, n = int(used[0]), int(used[-1] - used[0]) + 1
            source = source.narrow(axis, first, n)
            mine.append(operator[i].narrow(1, first, n))
        view.copy_(_on_one(source, mine))
    return views


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
    return torch.stack(views).to(torch.float32)


def apply_axes(hu: Tensor, operators: Sequence[Tensor | None]) -> Tensor:
    """One matrix per axis, [n out in], applied to [n z y x]; None leaves an axis as it is."""
    if all(operator is None for operator in operators):
        return hu
    if hu.device.type == "cpu":
        needed = [[None] * len(hu) if o is None else _unless_identity(o) for o in operators]
        each = [_on_one(view, mine) for view, *mine in zip(hu, *needed, strict=True)]
        return torch.stack(each)
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


def _unless_identity(operator: Tensor) -> list[Tensor | None]:
    """The matrix of each view, None where it changes nothing."""
    if operator.shape[1] != operator.shape[2]:
        return list(operator)
    identity = (operator == torch.eye(operator.shape[1])).all(2).all(1).tolist()
    return [None if same else one for same, one in zip(identity, operator, strict=True)]


def _on_one(view: Tensor, operators: Sequence[Tensor | None]) -> Tensor:
    """[z y x] with a matrix [out in] per axis applied."""
    on_z, on_y, on_x = operators
    if on_z is not None:
        view = (on_z @ view.flatten(1)).view(-1, *view.shape[1:])
    if on_y is not None:
        view = torch.bmm(on_y.expand(len(view), -1, -1), view)
    if on_x is not None:
        view = view @ on_x.mT
    return view


def row(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers per axis as a float32 tensor."""
    return torch.tensor(values, dtype=torch.float32, device=device)
