"""Where views are cut: how large crops are, in mm, and where and in which pose they lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headct.config import Config
from headct.errors import UsageError
from headct.views.cut import Path, Placement, Shape, rotation_matrix
from headct.views.draws import Drawn, Draws, chance, normal, uniform
from headct.volume.volume import Zyx

TOLERANCE = 0.05
"""Share of a patch by which a crop of one patch may be given too small: mm are often rounded."""


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
    stretch: bool = False
    """Every crop is stretched to the whole grid, as FM-CT does. It has no mm any more, so this is
    for encoders with learned positions only."""
    local_fraction: tuple[float, float] = (0.37, 0.74)
    """With `stretch`: as `global_fraction`, of a local crop."""

    def draw(self, rng: Draws, n: int, fraction: tuple[float, float]) -> Drawn:
        """Edges of n crops as shares of the field of view, each axis; where they are stretched."""
        return {"edge_fraction": uniform(rng, *fraction, (n, 3))} if self.stretch else {}


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
    flip_others_probability: float = Field(default=0.0, ge=0, le=1)
    """Up-down and front-back, as FM-CT does."""

    @property
    def path(self) -> Path:
        """The cheapest way to cut views with these poses."""
        if self.rotation_lr_deg > 0 or self.rotation_deg > 0:
            return "sample"
        return "axes" if self.zoom > 0 or self.shift_mm > 0 else "slice"

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Pose and place of n views; `place` picks the crop's position later."""
        sd_deg = np.array([self.rotation_deg, self.rotation_deg, self.rotation_lr_deg], np.float32)
        drawn = {
            "rotation_deg": normal(rng, 1.0, (n, 3)) * sd_deg,
            "zoom": np.exp(uniform(rng, -self.zoom, self.zoom, n)),
            "shift_mm": uniform(rng, -self.shift_mm, self.shift_mm, (n, 3)),
            "flip": chance(rng, self.flip_probability, n),
            "place": uniform(rng, 0.0, 1.0, (n, 4)),
        }
        if self.flip_others_probability > 0:
            others = chance(rng, self.flip_others_probability, 2 * n)
            drawn["flip_others"] = others.reshape(-1, 2)
        return drawn


def global_shapes(config: CropConfig, shape_zyx: Shape, patch_voxels_zyx: Shape) -> list[list[int]]:
    """Edges (voxels) that a global crop may have, per axis: whole patches within the fraction.

    Raises:
        UsageError: the patch does not divide the grid, or no whole number of patches fits.
    """
    low, high = config.global_fraction
    _require_share("global_fraction", low, high)
    edges = []
    for size, patch in zip(shape_zyx, patch_voxels_zyx, strict=True):
        if size % patch:
            raise UsageError(
                f"patches of {patch_voxels_zyx} voxels do not divide the grid {shape_zyx}",
                remedy="choose a patch whose edges divide those of the grid",
            )
        if config.stretch:
            edges.append([size])
            continue
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
        UsageError: the crop is larger than the field of view, or smaller than a patch.
    """
    if config.stretch:
        _require_share("local_fraction", *config.local_fraction)
        return shape_zyx
    patches_mm = [n * mm for n, mm in zip(patch_voxels_zyx, spacing_mm_zyx, strict=True)]
    if config.n_local and config.local_mm < max(patches_mm) * (1 - TOLERANCE):
        raise UsageError(
            f"a local crop of {config.local_mm:g} mm is smaller than a patch of"
            f" {max(patches_mm):.4g} mm",
            remedy="raise views.crop.local_mm, or set views.crop.n_local=0",
        )
    edges = [
        patch * max(1, round(config.local_mm / mm))
        for patch, mm in zip(patch_voxels_zyx, patches_mm, strict=True)
    ]
    if config.n_local and any(edge > size for edge, size in zip(edges, shape_zyx, strict=True)):
        raise UsageError(
            f"a local crop of {config.local_mm:g} mm is larger than the field of view",
            remedy="lower views.crop.local_mm",
        )
    z, y, x = edges
    return z, y, x


def _require_share(name: str, low: float, high: float) -> None:
    if not 0 < low <= high <= 1:
        raise UsageError(
            f"views.crop.{name} {low}..{high} does not lie within 0..1",
            remedy="a crop cannot be larger than the field of view: e.g. [0.75, 1.0]",
        )


def place_globals(
    drawn: dict[str, Tensor], shape_zyx: Shape, source_shape_zyx: Shape, spacing_mm_zyx: Zyx
) -> Placement:
    """Global crops: anywhere inside the field of view, at whole voxels, then shifted."""
    room = torch.tensor(source_shape_zyx) - torch.tensor(shape_zyx)
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
        occupancy: [b gz gy gx] share of each patch of the sources that is head; n = b v views,
            those of one scan side by side.
        patch_voxels_zyx: voxels of a patch.
        spacing_mm_zyx: voxel size.
    """
    filled = (occupancy.flatten(1) >= 0.5).to(torch.float32)
    filled = torch.where(filled.sum(1, keepdim=True) > 0, filled, torch.ones_like(filled))
    reached = filled.cumsum(1)
    wanted = drawn["place"][:, 0].view(len(reached), -1) * reached[:, -1:]
    chosen = torch.searchsorted(reached, wanted, right=True).flatten()
    index = torch.stack(torch.unravel_index(chosen, occupancy.shape[1:]), 1)
    patch, edge = torch.tensor(patch_voxels_zyx), torch.tensor(shape_zyx)
    source = torch.tensor(occupancy.shape[1:]) * patch
    start = ((index + drawn["place"][:, 1:]) * patch - edge / 2).round().clamp(min=0)
    z, y, x = (int(n) for n in source)
    start = torch.minimum(start, source - edge)
    return _placed(start, drawn, shape_zyx, (z, y, x), spacing_mm_zyx)


def place_stretched(
    drawn: dict[str, Tensor], source_shape_zyx: Shape, spacing_mm_zyx: Zyx
) -> Placement:
    """Crops anywhere inside the field of view, each stretched to the whole of it."""
    source = torch.tensor(source_shape_zyx)
    share = drawn["edge_fraction"]
    start = drawn["place"][:, 1:] * (1.0 - share) * source
    middle = start + (share - 1.0) * source / 2  # where a whole view would have to start
    at = _placed(middle, drawn, source_shape_zyx, source_shape_zyx, spacing_mm_zyx)
    return replace(at, step=at.step * share)


def _placed(
    start: Tensor,
    drawn: dict[str, Tensor],
    shape_zyx: Shape,
    source_shape_zyx: Shape,
    spacing_mm_zyx: Zyx,
) -> Placement:
    half = (torch.tensor(shape_zyx) - 1) / 2
    mirror = torch.ones_like(drawn["shift_mm"])
    mirror[:, 2] = 1.0 - 2.0 * drawn["flip"]
    if "flip_others" in drawn:
        mirror[:, :2] = 1.0 - 2.0 * drawn["flip_others"]
    return Placement(
        centre_voxel=start + half + drawn["shift_mm"] / torch.tensor(spacing_mm_zyx),
        step=mirror * drawn["zoom"][:, None],
        rotation=rotation_matrix(drawn["rotation_deg"]),
        shape_zyx=shape_zyx,
        spacing_mm_zyx=spacing_mm_zyx,
        source_shape_zyx=source_shape_zyx,
    )
