"""Where views are cut: crops and poses in mm, applied in one resampling per view.

Three paths give the same result where they apply. With rotation a view is one trilinear sampling.
Without, the whole map (crop, shift, zoom, flip, and the scanner's point spread of `spread`) is one
small matrix per axis, four times faster on a CPU. Without zoom and shift it is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from headct.config import Config
from headct.errors import UsageError
from headct.views.draws import Drawn, chance, normal, uniform
from headct.volume.volume import AIR_HU, Zyx

Shape = tuple[int, int, int]
Path = Literal["slice", "axes", "sample"]


class CropConfig(Config):
    """How many views, and how large."""

    n_global: int = Field(default=2, ge=1)
    """Large crops per scan."""
    n_local: int = Field(default=6, ge=0)
    """Small crops per scan, at native voxel size."""
    global_fraction: tuple[float, float] = (0.75, 1.0)
    """Smallest and largest edge of a global crop as a share of the field of view, each axis."""
    local_mm: float = Field(default=64.0, gt=0)
    """mm, edge of a local cube; rounded to whole patches of the grid."""


class PoseConfig(Config):
    """Affine map per view; all zero leaves the voxels as they are."""

    rotation_lr_deg: float = Field(default=8.0, ge=0)
    """Degrees, sd of the rotation about the left-right axis (nodding)."""
    rotation_deg: float = Field(default=4.0, ge=0)
    """Degrees, sd of the rotations about the other two axes."""
    zoom: float = Field(default=0.08, ge=0, lt=0.5)
    """Zoom is exp(U(-zoom, zoom))."""
    shift_mm: float = Field(default=8.0, ge=0)
    """mm, shift per axis is U(-shift, shift)."""
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    """Left-right only: ventricles, layering blood and the skull base have a direction."""

    @property
    def path(self) -> Path:
        """The cheapest way to cut views with these poses."""
        if self.rotation_lr_deg > 0 or self.rotation_deg > 0:
            return "sample"
        return "axes" if self.zoom > 0 or self.shift_mm > 0 else "slice"

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """Pose and place of n views; `place` picks the crop's position later."""
        sd_deg = np.array([self.rotation_deg, self.rotation_deg, self.rotation_lr_deg], np.float32)
        return {
            "rotation_deg": normal(rng, 1.0, (n, 3)) * sd_deg,
            "zoom": np.exp(uniform(rng, -self.zoom, self.zoom, n)),
            "shift_mm": uniform(rng, -self.shift_mm, self.shift_mm, (n, 3)),
            "flip": chance(rng, self.flip_probability, n),
            "place": uniform(rng, 0.0, 1.0, (n, 4)),
        }


def global_shapes(config: CropConfig, shape_zyx: Shape, patch_voxels_zyx: Shape) -> list[list[int]]:
    """Edges (voxels) that a global crop may have, per axis: whole patches within the fraction.

    Raises:
        UsageError: the patch does not divide the grid, or no whole number of patches fits.
    """
    low, high = config.global_fraction
    if not 0 < low <= high <= 1:
        raise UsageError(
            f"views.crop.global_fraction {low}..{high} does not lie within 0..1",
            remedy="a crop cannot be larger than the field of view: e.g. [0.75, 1.0]",
        )
    edges = []
    for size, patch in zip(shape_zyx, patch_voxels_zyx, strict=True):
        if size % patch:
            raise UsageError(
                f"patches of {patch_voxels_zyx} voxels do not divide the grid {shape_zyx}",
                remedy="choose a patch whose edges divide those of the grid",
            )
        fitting = [
            n for n in range(patch, size + 1, patch) if low * size <= n + 1e-6 <= high * size + 1e-5
        ]
        if not fitting:
            raise UsageError(
                f"no multiple of {patch} voxels lies between {low:.2f} and {high:.2f} of {size}",
                remedy="widen views.crop.global_fraction",
            )
        edges.append(fitting)
    return edges


def local_shape(
    config: CropConfig, shape_zyx: Shape, spacing_mm_zyx: Zyx, patch_voxels_zyx: Shape
) -> Shape:
    """Edges (voxels) of a local crop: as many whole patches as come nearest to `local_mm`.

    Raises:
        UsageError: the crop is larger than the field of view.
    """
    edges = [
        patch * max(1, round(config.local_mm / (patch * mm)))
        for patch, mm in zip(patch_voxels_zyx, spacing_mm_zyx, strict=True)
    ]
    if any(edge > size for edge, size in zip(edges, shape_zyx, strict=True)):
        raise UsageError(
            f"a local crop of {config.local_mm:g} mm is larger than the field of view",
            remedy="lower views.crop.local_mm",
        )
    z, y, x = edges
    return z, y, x


@dataclass(frozen=True, eq=False)
class Placement:
    """Where n views of one shape lie in their source volumes.

    Attributes:
        centre_voxel: [n 3] float32, source index (z, y, x) of the view's centre.
        step: [n 3] float32, source voxels per view voxel; negative x where flipped.
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
        mm = _row(self.spacing_mm_zyx, self.step.device)
        size = _row(self.source_shape_zyx, self.step.device)
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


def place_globals(
    drawn: dict[str, Tensor], shape_zyx: Shape, source_shape_zyx: Shape, spacing_mm_zyx: Zyx
) -> Placement:
    """Global crops: anywhere inside the field of view, at whole voxels, then shifted."""
    device = drawn["place"].device
    room = _row(source_shape_zyx, device) - _row(shape_zyx, device)
    start = (drawn["place"][:, 1:] * (room + 1)).floor()
    return _placed(start, drawn, shape_zyx, source_shape_zyx, spacing_mm_zyx)


def place_locals(
    drawn: dict[str, Tensor],
    shape_zyx: Shape,
    occupancy: Tensor,
    patch_voxels_zyx: Shape,
    spacing_mm_zyx: Zyx,
) -> Placement:
    """Local crops: centred in a patch that the head fills by half or more.

    Args:
        drawn: poses of n views.
        shape_zyx: voxels of a local crop.
        occupancy: [n gz gy gx] share of each patch of the source that is head.
        patch_voxels_zyx: voxels of a patch.
        spacing_mm_zyx: voxel size.
    """
    device = occupancy.device
    filled = (occupancy.flatten(1) >= 0.5).to(torch.float32)
    filled = torch.where(filled.sum(1, keepdim=True) > 0, filled, torch.ones_like(filled))
    reached = filled.cumsum(1)
    wanted = drawn["place"][:, :1] * reached[:, -1:]
    chosen = torch.searchsorted(reached, wanted, right=True)[:, 0]
    index = torch.stack(torch.unravel_index(chosen, occupancy.shape[1:]), 1)
    patch, edge = _row(patch_voxels_zyx, device), _row(shape_zyx, device)
    source = _row(occupancy.shape[1:], device) * patch
    start = ((index + drawn["place"][:, 1:]) * patch - edge / 2).round().clamp(min=0)
    z, y, x = (int(n) for n in source)
    start = torch.minimum(start, source - edge)
    return _placed(start, drawn, shape_zyx, (z, y, x), spacing_mm_zyx)


def _row(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _placed(
    start: Tensor,
    drawn: dict[str, Tensor],
    shape_zyx: Shape,
    source_shape_zyx: Shape,
    spacing_mm_zyx: Zyx,
) -> Placement:
    half = (_row(shape_zyx, start.device) - 1) / 2
    mirror = torch.ones_like(drawn["shift_mm"])
    mirror[:, 2] = 1.0 - 2.0 * drawn["flip"]
    return Placement(
        centre_voxel=start + half + drawn["shift_mm"] / _row(spacing_mm_zyx, start.device),
        step=mirror * drawn["zoom"][:, None],
        rotation=rotation_matrix(drawn["rotation_deg"]),
        shape_zyx=shape_zyx,
        spacing_mm_zyx=spacing_mm_zyx,
        source_shape_zyx=source_shape_zyx,
    )


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
    """[n z' y' x'] crops inside the scans at whole voxels, mirrored where x steps backwards."""
    half = (_row(placement.shape_zyx, scans.device) - 1) / 2
    starts = (placement.centre_voxel - half).round().long().tolist()
    mirrored = (placement.step[:, 2] < 0).tolist()
    views_each = len(starts) // len(scans)
    views = []
    for i, (start, mirror) in enumerate(zip(starts, mirrored, strict=True)):
        box = [slice(a, a + n) for a, n in zip(start, placement.shape_zyx, strict=True)]
        view = scans[i // views_each][tuple(box)]
        views.append(view.flip(-1) if mirror else view)
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
