"""Views cut out of scans: crop, pose and the scanner's point spread in one resampling per view.

Three paths give the same result where they apply. With rotation a view is one trilinear sampling.
Without, the whole map (crop, shift, zoom, flip, and the scanner's point spread of `spread`) is one
small matrix per axis, faster on a CPU. Without zoom and shift it is a slice. A CPU makes one view
after another, in its cache, and does for each only what that view needs; a GPU takes all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from headct.views.backend import has_kernels
from headct.views.draws import one_by_one, sent
from headct.views.sample import sample_affine
from headct.volume.volume import AIR_HU, Zyx

Shape = tuple[int, int, int]
TILED_FROM_VOXELS = 2**18
"""Views of a CPU that multiplies tiles of bfloat16 are cut in it from this size on: five times as
fast as in float32, where smaller products are no faster."""
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
        distance = (sent(self._source_index(axis), device)[..., None] - source).abs()
        return (1.0 - distance).clamp_(min=0.0)

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
    """Views from the voxels that each depends on; "sample" spreads what it has sampled."""
    views = torch.empty(len(placement.step), *placement.shape_zyx)
    tiled = has_tiles() and views[0].numel() >= TILED_FROM_VOXELS
    beyond: list[Tensor] = []
    if tiled:
        near = [None if operator is None else rounded(operator) for operator in operators]
        beyond = [1.0 - operator.sum(-1) for operator in near if operator is not None]
        operators = [None if operator is None else operator.bfloat16() for operator in near]
    starts, axes = placement.start_voxel(), placement.axes()
    views_each = len(views) // len(scans)
    on_box = path == "axes" and not tiled
    spans = [None if o is None or not on_box else _spans(o) for o in operators]
    for i, view in enumerate(views):
        scan = scans[i // views_each]
        mine = [None if operator is None else operator[i] for operator in operators]
        if path == "sample":
            sample_affine(scan, starts[i], axes[i], view)
            on_view = view
            if tiled and any(operator is not None for operator in mine):
                view.copy_(_on_one(view.add_(AIR_HU).bfloat16(), mine))
                continue
        elif tiled:
            if i % views_each == 0:
                whole = scan.bfloat16()
            view.copy_(_on_tiles(whole, mine, [lack[i] for lack in beyond]))
            continue
        else:
            for axis, span in enumerate(spans):
                operator = mine[axis]
                if span is not None and operator is not None:
                    scan = scan.narrow(axis, *span[i])
                    mine[axis] = operator.narrow(1, *span[i])
            on_view = scan - float(AIR_HU)
        torch.add(_on_one(on_view, mine), AIR_HU, out=view)
    return views


@cache
def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


def rounded(operators: Tensor) -> Tensor:
    """[n out in] as bfloat16 has them, the sums of rows kept to 1e-3 or better: air stays air.

    Each row's largest weights take, one after another, what rounding has left of the sum.
    """
    sums = operators.sum(-1, keepdim=True)
    near, sizes = operators.bfloat16().float(), operators.abs()
    for _ in range(3):
        largest = sizes.max(-1, keepdim=True).indices
        mended = near.gather(-1, largest) + sums - near.sum(-1, keepdim=True)
        near.scatter_(-1, largest, mended.bfloat16().float())
        sizes.scatter_(-1, largest, 0.0)
    return near


def _on_tiles(scan: Tensor, operators: Sequence[Tensor | None], beyond: Sequence[Tensor]) -> Tensor:
    """HU in bfloat16 with a matrix per axis applied, which rounds brain by 0.1 HU and bone by 2.

    HU as they are: as HU above air, all would be far from 0 and rounded more. The whole scan, so
    that few shapes occur: what multiplies tiles is compiled for each of them, once.

    Args:
        scan: [z y x] bfloat16.
        operators: [out in] bfloat16 of every axis.
        beyond: [out] of every axis, the weight that a row gives to air beyond the scan.
    """
    view = scan
    for operator, lack in zip(reversed(operators), reversed(beyond), strict=True):
        assert operator is not None
        edges = (len(operator), *view.shape[:2])  # the last axis is replaced, and becomes the first
        view = operator @ view.reshape(-1, view.shape[2]).mT
        rows = (lack.abs() > 2e-3).nonzero()[:, 0]
        if len(rows):
            view[rows] += (AIR_HU * lack[rows, None]).bfloat16()
        view = view.view(edges)
    return view


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
