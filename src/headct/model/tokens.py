"""Patches: volume -> voxels of the patches that are computed, and where those patches are.

Patches are numbered over the patch grid in array order: index = (z * grid_y + y) * grid_x + x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headct.views.backend import for_kernels
from headct.views.constants import constant
from headct.views.mask import patch_occupancy, unravel
from headct.volume.volume import AIR_HU
from headct.volume.window import Window

ZyxInt = tuple[int, int, int]


@dataclass(frozen=True)
class Tokens:
    """What the encoder says about a batch of volumes.

    Attributes:
        cls: [b d] one vector per volume, after the final norm.
        registers: [b r d].
        patches: [b t d] after the final norm, in the order of `index`.
        index: [b t] long, place of each patch in the patch grid.
        centre_mm: [b t 3] centres (z, y, x) in mm from the centre of the volume.
        grid_zyx: patches per axis.
        blocks: patch features [b t d] after each of the last blocks, without the final norm,
            where the caller asked for them.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor
    index: Tensor
    centre_mm: Tensor
    grid_zyx: ZyxInt
    blocks: tuple[Tensor, ...] = ()

    def regions(self, n_zyx: ZyxInt = (3, 4, 3)) -> Tensor:
        """Patch tokens averaged over a coarse grid of the field of view.

        A region without tokens gets the mean over all tokens of its scan.

        Returns:
            [b r d], regions in array order.
        """
        cells = torch.stack(unravel(self.index, self.grid_zyx), dim=-1)  # [b t 3]
        size = constant(self.grid_zyx, cells.device, torch.int64)
        counts = constant(n_zyx, cells.device, torch.int64)
        z, y, x = (cells * counts // size).unbind(-1)
        region = (z * n_zyx[1] + y) * n_zyx[2] + x
        member = F.one_hot(region, n_zyx[0] * n_zyx[1] * n_zyx[2]).to(self.patches.dtype)
        n_members = member.sum(dim=1)[..., None]  # [b r 1]
        sums = member.transpose(1, 2) @ self.patches
        mean = self.patches.mean(dim=1, keepdim=True)
        return torch.where(n_members > 0, sums / n_members.clamp(min=1), mean)


def grid_shape(shape_zyx: Sequence[int], patch_zyx: ZyxInt) -> ZyxInt:
    """Patches per axis; a part of a patch at the far end counts as one."""
    z, y, x = (-(-n // p) for n, p in zip(shape_zyx, patch_zyx, strict=True))
    return z, y, x


def every_patch(n: int, grid: ZyxInt, device: torch.device) -> Tensor:
    """Numbers [n t] of all patches of n volumes."""
    return torch.arange(math.prod(grid), device=device).expand(n, -1)


def gather_patches(
    volume: Tensor, patch_zyx: ZyxInt, keep: Tensor | None = None, *, outside: float = AIR_HU
) -> Tensor:
    """The voxels of the kept patches; the others are not even copied.

    Args:
        volume: [b z y x] HU, or [b c z y x] channels.
        patch_zyx: voxels per patch and axis.
        keep: [b t] long, patch numbers; None keeps all.
        outside: value for voxels beyond the volume, where a patch hangs over its far end.

    Returns:
        [b t v] for a volume without channels, else [b t c v]; v voxels in array order.
    """
    has_channels = volume.ndim == 5
    volume = volume if has_channels else volume[:, None]
    n, c = volume.shape[:2]
    grid = grid_shape(volume.shape[2:], patch_zyx)
    if keep is None:
        keep = every_patch(n, grid, volume.device)
    if for_kernels(volume) and not has_channels:
        from headct.model.patch_kernel import patches_of

        return patches_of(volume[:, 0], patch_zyx, keep, outside)
    rows = _padded(volume, grid, patch_zyx, outside).reshape(-1, patch_zyx[2])
    at = _rows_of_patches(keep, c, grid, patch_zyx)  # [b t c pz*py]
    patches = rows.index_select(0, at.flatten()).view(*at.shape[:3], -1)  # [b t c v]
    return patches if has_channels else patches[:, :, 0]


def _rows_of_patches(keep: Tensor, n_channels: int, grid: ZyxInt, patch: ZyxInt) -> Tensor:
    """Numbers [b t c pz*py] of rows of one patch's length along x, over volumes [b c z y x]."""
    n, device = keep.shape[0], keep.device
    per_slice = grid[1] * patch[1] * grid[2]
    z, y, x = unravel(keep, grid)
    first = z * patch[0] * per_slice + y * patch[1] * grid[2] + x  # [b t]
    slices = per_slice * torch.arange(patch[0], device=device)
    within = slices[:, None] + grid[2] * torch.arange(patch[1], device=device)  # [pz py]
    volume = torch.arange(n * n_channels, device=device).view(n, 1, n_channels)
    start = volume * (grid[0] * patch[0] * per_slice) + first[:, :, None]  # [b t c]
    return start[..., None] + within.flatten()


def _padded(volume: Tensor, grid: ZyxInt, patch: ZyxInt, outside: float) -> Tensor:
    missing = [g * p - n for g, p, n in zip(grid, patch, volume.shape[2:], strict=True)]
    if not any(missing):
        return volume
    z, y, x = missing
    return F.pad(volume, (0, x, 0, y, 0, z), value=outside)


def patch_centres_mm(
    index: Tensor, shape_zyx: Sequence[int], patch_zyx: ZyxInt, spacing_mm_zyx: Tensor
) -> Tensor:
    """Centres of patches in mm from the centre of the volume.

    Args:
        index: [b t] patch numbers.
        shape_zyx: voxels of the volume.
        patch_zyx: voxels per patch.
        spacing_mm_zyx: [3] or [b 3].

    Returns:
        [b t 3] float32 (z, y, x).
    """
    cells = torch.stack(unravel(index, grid_shape(shape_zyx, patch_zyx)), dim=-1).float()
    patch = constant(patch_zyx, index.device)
    middle = constant(shape_zyx, index.device) / 2
    spacing = spacing_mm_zyx.to(index.device, torch.float32).expand(index.shape[0], 3)
    return ((cells + 0.5) * patch - middle) * spacing[:, None]


def to_channels(voxels_hu: Tensor, level_hu: Tensor, width_hu: Tensor) -> Tensor:
    """Window channels of patches.

    Args:
        voxels_hu: [b t v] float.
        level_hu: [c], or [b c] where each scan has windows of its own.
        width_hu: as `level_hu`.

    Returns:
        [b t c v] in [-1, 1], saturated outside the window.
    """
    scale = (2.0 / width_hu).reshape(-1, 1, width_hu.shape[-1], 1)  # [b|1 1 c 1]
    offset = -level_hu.reshape_as(scale) * scale
    return (voxels_hu[:, :, None] * scale).add_(offset).clamp_(-1.0, 1.0)


class InputWindows(NamedTuple):
    """Windows that input channels are made with.

    Attributes:
        level_hu: [c], or [b c] where each scan has windows of its own.
        width_hu: as `level_hu`.
        gamma: [b], power that a channel's share of its window is raised to; None: 1.
    """

    level_hu: Tensor
    width_hu: Tensor
    gamma: Tensor | None = None

    def channels(self, voxels_hu: Tensor) -> Tensor:
        """[b t v] float HU -> [b t c v] in [-1, 1]."""
        channels = to_channels(voxels_hu, self.level_hu, self.width_hu)
        if self.gamma is None:
            return channels
        share = channels.add_(1.0).div_(2.0) ** self.gamma[:, None, None, None]
        return share.mul_(2.0).sub_(1.0)


def window_tensors(windows: Sequence[Window], device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels [c] and widths [c] of windows, HU."""
    level = constant([w.level_hu for w in windows], device)
    width = constant([w.width_hu for w in windows], device)
    return level, width


def select_head_tokens(hu: Tensor, n_tokens: int, patch_zyx: ZyxInt) -> Tensor:
    """The n most head-like patches of each scan, so that batches are rectangular.

    Likeness is the share of tissue in the patch plus that around it (27 patches), less its depth
    below the centre of mass: air in sinuses is kept, the neck goes before the vertex, and what is
    left of a table goes first.

    Args:
        hu: [b z y x], any number type.
        n_tokens: patches to keep; all are kept where the grid has no more than that.
        patch_zyx: voxels per patch.

    Returns:
        [b t] long, ascending; the same for the same scan in any batch.
    """
    tissue = patch_occupancy(hu, patch_zyx).flatten(1)
    grid = grid_shape(hu.shape[1:], patch_zyx)
    n_tokens = min(n_tokens, tissue.shape[1])
    around = F.pad(torch.unflatten(tissue, 1, grid), (1, 1, 1, 1, 1, 1))
    for axis, n in enumerate(grid, 1):  # faster on a CPU than `avg_pool3d`
        before, here, behind = (around.narrow(axis, first, n) for first in range(3))
        around = before + here + behind
    likeness = tissue + around.flatten(1) / 27 - _below_centre(tissue, grid)
    order = likeness.argsort(dim=1, descending=True, stable=True)
    kept: Tensor = order[:, :n_tokens].sort(dim=1).values
    return kept


def _below_centre(tissue: Tensor, grid: ZyxInt) -> Tensor:
    """How far each patch is below the centre of mass of its scan, as a share of the grid: [b g]."""
    index = torch.arange(tissue.shape[1], device=tissue.device)
    height = unravel(index, grid)[0].float() / grid[0]
    centre = (tissue @ height) / tissue.sum(dim=1).clamp(min=1e-6)
    return (centre[:, None] - height).clamp(min=0.0)
