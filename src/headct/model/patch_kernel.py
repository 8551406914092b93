"""The look-up of patches on a GPU, and their window channels, as one Triton kernel.

A patch is a program: where it lies is worked out once for it, and its voxels are read once. torch's
operations look up rows of a few voxels, or divide for every voxel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def patches_of(volume: Tensor, patch_zyx: tuple[int, int, int], keep: Tensor, air: float) -> Tensor:
    """The voxels of patches.

    Args:
        volume: [b z y x] on a GPU.
        patch_zyx: voxels per patch and axis.
        keep: [b t] long, patch numbers.
        air: value of voxels beyond the volume, where a patch hangs over its far end.

    Returns:
        [b t v] in the volume's dtype.
    """
    return _launch(volume, patch_zyx, keep, air, volume.dtype, None)


def window_patches_of(
    volume: Tensor,
    patch_zyx: tuple[int, int, int],
    keep: Tensor,
    air: float,
    windows: tuple[Tensor, Tensor, Tensor | None],
    channel_range: tuple[float, float],
    dtype: torch.dtype,
) -> Tensor:
    """Window channels of the voxels of patches.

    Args:
        volume: as in `patches_of`, HU.
        patch_zyx: as there.
        keep: as there.
        air: as there.
        windows: level and width, each [c] or [b c] HU, and the power [b] of a channel or None.
        channel_range: what a window's lower and upper edge become.
        dtype: of the channels.

    Returns:
        [b t c*v], saturated outside the windows.
    """
    return _launch(volume, patch_zyx, keep, air, dtype, (*windows, *channel_range)).flatten(2)


def _launch(
    volume: Tensor,
    patch_zyx: tuple[int, int, int],
    keep: Tensor,
    air: float,
    dtype: torch.dtype,
    windows: tuple[Tensor, Tensor, Tensor | None, float, float] | None,
) -> Tensor:
    volume, keep = volume.contiguous(), keep.contiguous()
    n_voxels = patch_zyx[0] * patch_zyx[1] * patch_zyx[2]
    channels: tuple[int, ...] = ()
    scale = offset = power = volume  # not read without windows
    n_windows, step, low, rise = 0, 0, 0.0, 0.0
    if windows is not None:
        level_hu, width_hu, gamma, low, high = windows
        n_windows = level_hu.shape[-1]
        channels = (n_windows,)
        if level_hu.ndim == 2:
            step = n_windows
            level_hu, width_hu = (v.expand(len(volume), -1) for v in (level_hu, width_hu))
        # share of the window: hu * scale + offset
        scale = (1.0 / width_hu.float()).contiguous()
        offset = (0.5 - level_hu * scale).contiguous()
        rise = high - low
        power = volume if gamma is None else gamma.contiguous()
    out = torch.empty(*keep.shape, *channels, n_voxels, dtype=dtype, device=volume.device)
    with torch.cuda.device_of(volume):  # type: ignore[no-untyped-call]
        _look_up[(keep.numel(),)](
            *(volume, *volume.shape[1:], keep, keep.shape[1], out, air),
            *(scale, offset, step, power, low, rise),
            *patch_zyx,
            n_written=n_voxels * max(n_windows, 1),
            n_windows=n_windows,
            has_power=windows is not None and windows[2] is not None,
            at_once=triton.next_power_of_2(n_voxels),
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _look_up(  # type: ignore[no-untyped-def]
    volume,
    n_z,
    n_y,
    n_x,
    keep,
    n_kept,
    out,
    air,
    scale,
    offset,
    step,
    power,
    low,
    rise,
    patch_z: tl.constexpr,
    patch_y: tl.constexpr,
    patch_x: tl.constexpr,
    n_written: tl.constexpr,
    n_windows: tl.constexpr,
    has_power: tl.constexpr,
    at_once: tl.constexpr,
):
    program = tl.program_id(0)
    scan = program // n_kept
    index = tl.load(keep + program).to(tl.int32)
    grid_y, grid_x = tl.cdiv(n_y, patch_y), tl.cdiv(n_x, patch_x)
    voxel = tl.arange(0, at_once)
    z = index // (grid_y * grid_x) * patch_z + voxel // (patch_y * patch_x)
    y = index // grid_x % grid_y * patch_y + voxel // patch_x % patch_y
    x = index % grid_x * patch_x + voxel % patch_x
    n_voxels: tl.constexpr = patch_z * patch_y * patch_x
    is_one = voxel < n_voxels
    within = is_one & (z < n_z) & (y < n_y) & (x < n_x)
    start = volume + scan.to(tl.int64) * n_z * n_y * n_x
    hu = tl.load(start + (z * n_y + y) * n_x + x, mask=within, other=air)
    row = out + program.to(tl.int64) * n_written + voxel
    if n_windows == 0:
        tl.store(row, hu, mask=is_one)
    for window in tl.static_range(n_windows):
        of = scan * step + window
        share = hu.to(tl.float32) * tl.load(scale + of) + tl.load(offset + of)
        share = tl.maximum(share, 0.0, propagate_nan=tl.PropagateNan.ALL)
        share = tl.minimum(share, 1.0, propagate_nan=tl.PropagateNan.ALL)
        if has_power:
            share = tl.exp2(tl.load(power + scan) * tl.log2(share))
        channel = (low + rise * share).to(out.dtype.element_ty)
        tl.store(row + window * n_voxels, channel, mask=is_one)
