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

from headct.views import tiles
from headct.views.backend import has_kernels
from headct.views.draws import one_by_one, sent
from headct.views.memory import reused
from headct.views.sample import sample_affine
from headct.volume.volume import AIR_HU, Zyx

Shape = tuple[int, int, int]
Path = Literal["slice", "axes", "sample"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where n views of one shape lie in their source volumes; kept on the CPU.

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

    def axis_operator(self, axis: int, device: torch.device) -> Tensor:
        """[n size source] linear interpolation along one axis; rows outside the source are 0."""
        source = torch.arange(self.source_shape_zyx[axis], device=device)
        distance = (sent(self._source_index(axis), device)[..., None] - source).abs_()
        return distance.neg_().add_(1.0).clamp_(min=0.0)

    def _source_index(self, axis: int) -> Tensor:
        n = self.shape_zyx[axis]
        offset = torch.arange(n) - (n - 1) / 2
        return self.centre_voxel[:, axis, None] + self.step[:, axis, None] * offset

    def axes(self) -> Tensor:
        """[n 3 3] source voxels (row) per view voxel along each axis (column)."""
        mm = torch.tensor(self.spacing_mm_zyx)
        return self.rotation * (mm * self.step)[:, None, :] / mm[:, None]

    def start_voxel(self) -> Tensor:
        """[n 3] source index (z, y, x) of the first voxel of each view."""
        start, axes = self.centre_voxel, self.axes()
        for axis, n in enumerate(self.shape_zyx):  # no matrix product: it rounds by batch size
            start = start - axes[:, :, axis] * ((n - 1) / 2)
        return start

    def sampling_grid(self, n_scans: int, device: torch.device) -> Tensor:
        """[b v*z y x 3] on a device for `grid_sample` (x, y, z order, align_corners False).

        The v views of a scan are stacked along z, so that no scan is copied for each. It is a view
        of [b 3 v*z y x], of which a GPU writes whole rows.
        """
        size = torch.tensor(self.source_shape_zyx)
        axes = (self.axes() * (2.0 / size)[:, None]).flip(1).view(n_scans, -1, 3, 3)
        centre = ((self.centre_voxel + 0.5) * (2.0 / size) - 1.0).flip(1).view(n_scans, -1, 3)
        offsets = [torch.arange(n) - (n - 1) / 2 for n in self.shape_zyx]
        z, y, x = (
            sent(axes[..., axis].mT[..., None] * offset, device)  # [b 3 v n]
            for axis, offset in enumerate(offsets)
        )
        along_z = sent(centre.mT.contiguous(), device)[..., None] + z
        grid = along_z[..., None, None] + y[:, :, :, None, :, None] + x[:, :, :, None, None]
        return grid.flatten(2, 3).permute(0, 2, 3, 4, 1)


def rotation_matrix(rotation_deg: Tensor) -> Tensor:
    """[n 3 3] in (z, y, x) order from rotations about the z, then y, then x axis, [n 3] degrees."""
    if one_by_one(rotation_deg.device) and not rotation_deg.any():
        return torch.eye(3).expand(len(rotation_deg), 3, 3)
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
        [n z' y' x'] HU; AIR_HU outside the scan. float32, or float16 where a GPU has sampled them
        and spread them.
    """
    if path == "slice":
        return apply_axes(_slices(scans, placement), spread)
    merged = list(spread)
    if path == "axes":
        operators = [placement.axis_operator(axis, scans.device) for axis in range(3)]
        merged = [
            operator if psf is None else psf @ operator
            for psf, operator in zip(spread, operators, strict=True)
        ]
    if one_by_one(scans.device):
        return _one_by_one(scans, placement, merged, path)
    if path == "axes":
        on_z, *others = merged
        assert on_z is not None
        above_air = scans - float(AIR_HU)
        # the views of a scan stacked along z, so that no scan is copied for each
        rows = torch.bmm(on_z.view(len(scans), -1, scans.shape[1]), above_air.flatten(2))
        rows = rows.view(len(on_z), -1, *scans.shape[2:])
        return apply_axes(rows, [None, *others]).add_(AIR_HU)
    if all(psf is None for psf in spread):
        return _sampled(scans, placement, torch.float32)
    # a third of the time in float16, which rounds brain by 0.02 HU, bone by 0.5, metal by 1
    halves = [None if psf is None else psf.half() for psf in spread]
    return apply_axes(_sampled(scans, placement, torch.float16), halves)


def _sampled(scans: Tensor, placement: Placement, dtype: torch.dtype) -> Tensor:
    """All views at once, sampled trilinearly: [n z' y' x'] HU."""
    device = scans.device
    if has_kernels(device):
        from headct.views import kernels

        start, axes = sent(placement.start_voxel(), device), sent(placement.axes(), device)
        return kernels.sample(scans, start, axes, placement.shape_zyx, dtype)
    above_air = (scans - float(AIR_HU))[:, None]
    grid = placement.sampling_grid(len(scans), device)
    views = F.grid_sample(above_air, grid, align_corners=False).add_(AIR_HU)
    return views.view(-1, *placement.shape_zyx).to(dtype)


def _one_by_one(
    scans: Tensor, placement: Placement, operators: Sequence[Tensor | None], path: Path
) -> Tensor:
    """Views as `cut` makes them on a CPU, whose cache holds one at a time."""
    views = reused(len(placement.step), *placement.shape_zyx)
    in_tiles = tiles.pay(placement.shape_zyx)
    if path == "sample":
        _sample_each(scans, placement, operators, views, in_tiles=in_tiles)
        return views
    on_z, on_y, on_x = operators
    assert on_z is not None
    assert on_y is not None
    assert on_x is not None
    by_axis = tiles.cut_each if in_tiles else _cut_each
    by_axis(scans, (on_z, on_y, on_x), views)
    return views


def _sample_each(
    scans: Tensor,
    placement: Placement,
    spread: Sequence[Tensor | None],
    views: Tensor,
    *,
    in_tiles: bool,
) -> None:
    """Views sampled one after another, each spread while it is in the cache; rows of the point
    spread sum to 1.
    """
    if in_tiles:
        spread = [None if psf is None else tiles.rounded(psf).bfloat16() for psf in spread]
    starts, axes = placement.start_voxel(), placement.axes()
    views_each = len(views) // len(scans)
    for i, view in enumerate(views):
        sample_affine(scans[i // views_each], starts[i], axes[i], view)
        view.add_(AIR_HU)
        mine = [None if psf is None else psf[i] for psf in spread]
        if any(psf is not None for psf in mine):
            view.copy_(_on_one(view.bfloat16() if in_tiles else view, mine))


def _cut_each(scans: Tensor, operators: tuple[Tensor, ...], views: Tensor) -> None:
    """One matrix per axis, on the box of the scan that a view looks at."""
    spans = [_spans(operator) for operator in operators]
    views_each = len(views) // len(scans)
    for i, view in enumerate(views):
        box, mine = scans[i // views_each], []
        for axis, (operator, span) in enumerate(zip(operators, spans, strict=True)):
            box = box.narrow(axis, *span[i])
            mine.append(operator[i].narrow(1, *span[i]))
        torch.add(_on_one(box - float(AIR_HU), mine), AIR_HU, out=view)


def _spans(operators: Tensor) -> list[tuple[int, int]]:
    """First voxel and number of voxels that each operator [out in] of [n out in] looks at."""
    looked = operators.any(1).numpy()
    first, behind = looked.argmax(1), looked[:, ::-1].argmax(1)
    n = looked.shape[1]
    return [(int(a), int(n - b - a)) for a, b in zip(first, behind, strict=True)]


def _slices(scans: Tensor, placement: Placement) -> Tensor:
    """[n z' y' x'] crops inside the scans at whole voxels, mirrored where they step backwards."""
    half = (torch.tensor(placement.shape_zyx) - 1) / 2
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
    if one_by_one(hu.device):
        by_view = zip(hu, *([None] * len(hu) if o is None else o for o in operators), strict=True)
        return torch.stack([_on_one(view, mine) for view, *mine in by_view])
    on_z, on_y, on_x = operators
    n = len(hu)
    if on_z is not None:
        hu = torch.bmm(on_z, hu.flatten(2)).view(n, -1, *hu.shape[2:])
    if on_x is not None:
        hu = torch.bmm(hu.flatten(1, 2), on_x.mT).view(*hu.shape[:3], -1)
    if on_y is not None:
        z, y, x = hu.shape[1:]
        columns = hu.transpose(1, 2).reshape(n, y, z * x)
        hu = torch.bmm(on_y, columns).view(n, -1, z, x).transpose(1, 2)
    return hu


def _on_one(view: Tensor, operators: Sequence[Tensor | None]) -> Tensor:
    """[z y x] with a matrix [out in] per axis applied; those that change nothing are left out."""
    on_z, on_y, on_x = (None if o is None or _is_identity(o) else o for o in operators)
    if on_z is not None:
        view = (on_z @ view.flatten(1)).view(-1, *view.shape[1:])
    if on_y is not None:
        view = torch.bmm(on_y.expand(len(view), -1, -1), view)
    if on_x is not None:
        view = view @ on_x.mT
    return view


def _is_identity(operator: Tensor) -> bool:
    n_out, n_in = operator.shape
    return n_out == n_in and torch.equal(operator, torch.eye(n_in, dtype=operator.dtype))
