"""Trilinear sampling of one scan on a CPU, twice as fast as `grid_sample` on volumes.

PyTorch's kernel for volumes goes voxel by voxel, that for images takes a vector of pixels at a
time. So a scan is read as one tall image, its slices under each other, whose second channel is the
same image one slice further: one bilinear look-up gives both slices, and their mix is trilinear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from headct.volume.volume import AIR_HU

_VOXELS_AT_ONCE = 2**15  # stay in the cache, and below what torch splits between threads


def sample_affine(scan: Tensor, start: Tensor, axes: Tensor, out: Tensor) -> None:
    """Sample HU above air on an oblique grid; 0 outside the scan.

    Coordinates count rows of the tall image in float32: they are exact to a few 1e-4 of a voxel.

    Args:
        scan: [z y x] HU, any number type.
        start: [3] source index (z, y, x) of the first voxel of the view.
        axes: [3 3] source voxels (row) per view voxel along each axis (column).
        out: [z y x] float32, the view, written in place.
    """
    lowest, padded = _box_above_air(scan, start, axes, out.shape)
    start = start - lowest
    n_z, n_y, n_x = padded.shape[0] - 3, padded.shape[1] - 2, padded.shape[2]
    steps = [torch.arange(n, dtype=torch.float32) for n in out.shape]
    plane = axes[:, 1, None, None] * steps[1][:, None] + axes[:, 2, None, None] * steps[2]
    along = start[:, None] + axes[:, 0, None] * steps[0]  # [3 z]
    plane[2].add_(0.5).mul_(2 / n_x).sub_(1)  # as `grid_sample` counts
    along[2].mul_(2 / n_x)
    low, high = plane[0].aminmax()
    at_once = max(1, _VOXELS_AT_ONCE // plane[0].numel())
    for first in range(0, out.shape[0], at_once):
        part = out[first : first + at_once]
        from_z, from_y, from_x = along[:, first : first + at_once, None, None]
        bounds = torch.stack([from_z.amin() + low, from_z.amax() + high])
        nearest, farthest = (int(b) for b in bounds.clamp_(-1, n_z).floor_())
        n_rows = (farthest - nearest + 1) * (n_y + 2)
        z = (plane[0] + from_z).clamp_(-1, n_z)
        whole = z.floor()
        share = z.sub_(whole)
        at = z.new_empty(2, *part.shape)
        torch.add(plane[2], from_x, out=at[0])
        row = 2 / n_rows
        torch.add((from_y + 1.5) * row - 1, plane[1], alpha=row, out=at[1])
        at[1].clamp_(0.5 * row - 1, (n_y + 1.5) * row - 1)
        at[1].add_(whole.sub_(nearest), alpha=(n_y + 2) * row)
        image = padded.as_strided(
            (1, 2, n_rows, n_x),
            (0, padded.stride(0), n_x, 1),
            padded.storage_offset() + (nearest + 1) * padded.stride(0),
        )
        grid = at.flatten(1, 2).permute(1, 2, 0)[None]
        both = F.grid_sample(image, grid, align_corners=False).view(2, *part.shape)
        torch.lerp(both[0], both[1], share, out=part)


def _box_above_air(
    scan: Tensor, start: Tensor, axes: Tensor, shape_zyx: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The part of a scan around a view: its first voxel [3], and [z+3 y+2 x] float32 HU above air
    with the zeros beside it that the image look-ups may touch.
    """
    edges = axes * (torch.tensor(shape_zyx) - 1)
    first = (start + edges.clamp(max=0).sum(1) - 1).floor().tolist()
    last = (start + edges.clamp(min=0).sum(1) + 1).ceil().tolist()
    box = [
        slice(int(min(max(a, 0), n - 1)), int(max(min(b + 1, n), 1)))
        for a, b, n in zip(first, last, scan.shape, strict=True)
    ]
    z, y, x = (b.stop - b.start for b in box)
    padded = torch.empty(z + 3, y + 2, x)
    for border in (padded[:1], padded[-2:], padded[:, :1], padded[:, -1:]):
        border.zero_()
    padded[1:-2, 1:-1].copy_(scan[tuple(box)]).sub_(float(AIR_HU))
    return torch.tensor([b.start for b in box], dtype=torch.float32), padded
