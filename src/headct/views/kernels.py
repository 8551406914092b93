"""What a GPU does with every voxel of a view, as two Triton kernels.

Each reads and writes a voxel once, where torch's operations write all that lies between them: the
places at which scans are sampled are three times the views. Triton comes with torch for CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from headct.volume.volume import AIR_HU

AT_ONCE = 512
"""Voxels of a slice that a program works on."""


def sample(
    scans: Tensor, start: Tensor, axes: Tensor, shape_zyx: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Views sampled trilinearly on oblique grids.

    Args:
        scans: [b z y x] HU, on a GPU.
        start: [n 3] source index (z, y, x) of the first voxel of each view; n = b v, those of a
            scan side by side.
        axes: [n 3 3] source voxels (row) per view voxel along each axis (column).
        shape_zyx: voxels of a view.
        dtype: of the views.

    Returns:
        [n z' y' x'] HU, air outside the scan.
    """
    scans, (z, y, x) = scans.contiguous(), shape_zyx
    views = torch.empty(len(start), z, y, x, dtype=dtype, device=scans.device)
    affine = torch.cat([start[:, :, None], axes], dim=2).contiguous()  # [n 3 4]
    programs = (len(start) * z, triton.cdiv(y * x, AT_ONCE))
    sizes = (len(start) // len(scans), *scans.shape[1:], z, y, x)
    with torch.cuda.device_of(scans):  # type: ignore[no-untyped-call]
        _sample[programs](scans, affine, views, *sizes, AIR_HU, AT_ONCE)
    return views


def try_out(device: torch.device) -> None:
    """Sample one voxel, so that whatever Triton lacks on this machine shows."""
    scan = torch.zeros(1, 1, 1, 1, dtype=torch.int16, device=device)
    affine = torch.zeros(1, 3, 4, device=device)
    sample(scan, affine[..., 0], affine[..., 1:], (1, 1, 1), torch.float32)


def respond(hu: Tensor, factors: Tensor, noise_first: Tensor, bank: Tensor) -> Tensor:
    """`response.respond` for all views at once.

    Args:
        hu: [n z y x] on a GPU; any strides.
        factors: [n 3+y+2x+2z], `Response.packed`.
        noise_first: [n] places in the flat bank.
        bank: [2 z' y' x'] float32.

    Returns:
        [n z y x] float32.
    """
    n, z, y, x = hu.shape
    views = torch.empty(n, z, y, x, device=hu.device)
    programs = (n * z, triton.cdiv(y * x, AT_ONCE))
    given = (hu, *hu.stride(), factors, factors.stride(0), noise_first)
    with torch.cuda.device_of(hu):  # type: ignore[no-untyped-call]
        _respond[programs](*given, bank, *bank.stride()[1:3], views, z, y, x, AIR_HU, AT_ONCE)
    return views


@triton.jit  # type: ignore[untyped-decorator]
def _sample(  # type: ignore[no-untyped-def]
    scans,
    affine,
    views,
    views_each,
    from_z,
    from_y,
    from_x,
    z,
    y,
    x,
    air,
    at_once: tl.constexpr,
):
    row = tl.program_id(0)
    view, k = row // z, row % z
    pixel = tl.program_id(1) * at_once + tl.arange(0, at_once)
    j, i = pixel // x, pixel % x
    mine = affine + view * 12
    at_z = _place(mine, k, j, i)
    at_y = _place(mine + 4, k, j, i)
    at_x = _place(mine + 8, k, j, i)
    low_z, low_y, low_x = tl.floor(at_z), tl.floor(at_y), tl.floor(at_x)
    share_z, share_y, share_x = at_z - low_z, at_y - low_y, at_x - low_x
    # beyond the scan every corner is air: held where no integer can overflow
    first_z = tl.minimum(tl.maximum(low_z, -2.0), from_z + 1.0).to(tl.int32)
    first_y = tl.minimum(tl.maximum(low_y, -2.0), from_y + 1.0).to(tl.int32)
    first_x = tl.minimum(tl.maximum(low_x, -2.0), from_x + 1.0).to(tl.int32)
    scan = scans + (view // views_each).to(tl.int64) * from_z * from_y * from_x
    found = tl.zeros([at_once], tl.float32)
    for corner in tl.static_range(8):
        cz, cy, cx = first_z + corner // 4, first_y + corner // 2 % 2, first_x + corner % 2
        part = share_z if corner // 4 else 1.0 - share_z
        part *= share_y if corner // 2 % 2 else 1.0 - share_y
        part *= share_x if corner % 2 else 1.0 - share_x
        within = (cz >= 0) & (cz < from_z) & (cy >= 0) & (cy < from_y) & (cx >= 0) & (cx < from_x)
        hu = tl.load(scan + (cz * from_y + cy) * from_x + cx, mask=within, other=air)
        found += part * hu.to(tl.float32)
    out = views + row.to(tl.int64) * y * x + pixel
    tl.store(out, found.to(views.dtype.element_ty), mask=pixel < y * x)


@triton.jit
def _place(row, k, j, i):  # type: ignore[no-untyped-def]
    """Source index along one axis of voxels (k, j, i) of a view."""
    return tl.load(row) + tl.load(row + 1) * k + tl.load(row + 2) * j + tl.load(row + 3) * i


@triton.jit  # type: ignore[untyped-decorator]
def _respond(  # type: ignore[no-untyped-def]
    hu,
    hu_n,
    hu_z,
    hu_y,
    hu_x,
    factors,
    n_factors,
    noise_first,
    bank,
    bank_z,
    bank_y,
    views,
    z,
    y,
    x,
    air,
    at_once: tl.constexpr,
):
    row = tl.program_id(0)
    view, k = row // z, row % z
    pixel = tl.program_id(1) * at_once + tl.arange(0, at_once)
    inside = pixel < y * x
    j, i = pixel // x, pixel % x
    mine = factors + view * n_factors
    gain, offset_hu, cupping_hu = tl.load(mine), tl.load(mine + 1), tl.load(mine + 2)
    radius_y = tl.load(mine + 3 + j, mask=inside, other=0.0)
    radius_x = tl.load(mine + 3 + y + i, mask=inside, other=0.0)
    band_hu = tl.load(mine + 3 + y + x + k)
    band_width = tl.load(mine + 3 + y + x + z + i, mask=inside, other=0.0)
    noise_hu = tl.load(mine + 3 + y + x + z + x + k)
    seen = tl.load(hu + view.to(tl.int64) * hu_n + k * hu_z + j * hu_y + i * hu_x, mask=inside)
    seen = seen.to(tl.float32) * gain + offset_hu
    seen += cupping_hu * (tl.minimum(radius_y + radius_x, 1.0) - 0.5)
    seen += band_hu * band_width
    box = bank + tl.load(noise_first + view) + k * bank_z
    seen += noise_hu * tl.load(box + j * bank_y + i, mask=inside, other=0.0)
    seen = tl.maximum(seen, air, propagate_nan=tl.PropagateNan.ALL)
    tl.store(views + row.to(tl.int64) * y * x + pixel, seen, mask=inside)
