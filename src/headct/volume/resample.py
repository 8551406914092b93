"""One resampling from a native grid to an axis-aligned grid in mm, without aliasing.

Where both grids have parallel axes the operation is exactly separable: one banded 1D operator per
axis. Tilted (sheared) and oblique stacks take the general path through their true affine.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.volume.separable import Operator, apply_operators
from headct.volume.volume import AIR_HU

Float = NDArray[np.float32]
Affine = NDArray[np.float64]
PARALLEL_WITHIN = 0.1
"""Axes count as parallel where no native voxel strays further, as a share of a target voxel."""
WHOLE = 1 - 1e-6
"""A target voxel covered this much by the native grid is covered."""


def resample(
    hu: NDArray[Any],
    native: Affine,
    target: Affine,
    shape_zyx: tuple[int, ...],
    wanted: NDArray[np.bool_] | None = None,
) -> Float:
    """HU on the target grid; outside the native grid AIR_HU.

    Args:
        hu: [z y x], axes ordered and directed like the target's (see `closest_ras`).
        native: 4x4, native voxel -> mm; may be sheared.
        target: 4x4, target voxel -> mm; axes parallel to the world's.
        shape_zyx: voxels of the target.
        wanted: of that shape, False where any value will do.

    Returns:
        float32, of the shape asked for.
    """
    to_native = np.linalg.inv(native) @ target
    if is_parallel(hu.shape, native, target):
        return _separable(hu, to_native, shape_zyx, wanted)
    return _general(hu, to_native, shape_zyx)


def closest_ras(hu: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine]:
    """The same voxels with axes permuted and flipped to point most nearly to S, A and R.

    Returns a view and its affine; nothing is interpolated.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = _best_order(np.abs(cosines))
    signs = [1 if cosines[world, axis] > 0 else -1 for world, axis in enumerate(order)]
    view = hu.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for world, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        turn[axis, world] = sign
        turn[axis, 3] = 0 if sign > 0 else hu.shape[axis] - 1
    return view, affine @ turn


def _best_order(weights: NDArray[np.float64]) -> tuple[int, int, int]:
    """Which array axis goes to which world axis: the permutation with the largest cosines."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    return max(orders, key=lambda order: sum(weights[w, axis] for w, axis in enumerate(order)))


def is_parallel(shape_zyx: tuple[int, ...], native: Affine, target: Affine) -> bool:
    """Whether the native axes run along the target's, up to a fraction of a target voxel."""
    stray_mm = np.abs(native[:3, :3]) * np.asarray(shape_zyx)
    np.fill_diagonal(stray_mm, 0.0)
    spacing_mm = np.abs(np.diag(target)[:3])
    return bool((stray_mm.sum(axis=1) < PARALLEL_WITHIN * spacing_mm).all())


def nearest(mask: NDArray[np.bool_], to_mask: Affine, shape_zyx: tuple[int, ...]) -> Any:
    """The mask at the nearest voxel; False outside.

    Args:
        mask: [z y x].
        to_mask: 4x4, target voxel -> mask voxel.
        shape_zyx: voxels of the target.
    """
    if np.any(to_mask[:3, :3] - np.diag(np.diag(to_mask[:3, :3]))):
        out = ndimage.affine_transform(
            mask.view(np.uint8),
            to_mask[:3, :3],
            to_mask[:3, 3],
            output_shape=shape_zyx,
            order=0,
            mode="grid-constant",
            cval=0,
        )
        return out.astype(bool)
    for axis in range(3):
        place = to_mask[axis, axis] * np.arange(shape_zyx[axis]) + to_mask[axis, 3]
        index = np.floor(place + 0.5).astype(int)
        outside = (index < 0) | (index >= mask.shape[axis])
        mask = mask.take(index.clip(0, mask.shape[axis] - 1), axis=axis)
        mask[(*[slice(None)] * axis, outside)] = False
    return mask


def axis_operator(n_in: int, n_out: int, step: float, start: float) -> tuple[int, Float]:
    """The 1D operator of one axis: linear to a finer grid, box average to a coarser one.

    Both treat a native voxel as half a voxel wide to either side, and agree at equal spacing.

    Args:
        n_in: native voxels.
        n_out: target voxels.
        step: native voxels per target voxel, positive.
        start: native index of the centre of target voxel 0.

    Returns:
        First native voxel that is used, and weights [n_out, n_used]; a row sums to the share of
        the target voxel that the native grid covers.
    """
    centre = start + step * np.arange(n_out)[:, None]
    reach = max(step, 1.0) / 2 + 0.5
    index = np.floor(centre - reach).astype(int) + np.arange(int(2 * reach) + 3)
    if step >= 1.0:
        low = np.maximum(centre - step / 2, index - 0.5)
        high = np.minimum(centre + step / 2, index + 0.5)
        band = np.maximum(high - low, 0.0) / step
    else:
        inside = (centre >= -0.5) & (centre <= n_in - 0.5)
        place = np.clip(centre, 0, n_in - 1)
        band = np.where(inside, np.maximum(1.0 - np.abs(place - index), 0.0), 0.0)
    is_native = (index >= 0) & (index < n_in)
    weights = np.zeros((n_out, n_in), np.float32)
    weights[np.nonzero(is_native)[0], index[is_native]] = band[is_native]
    used = np.flatnonzero(weights.any(axis=0))
    if used.size == 0:
        return 0, np.zeros((n_out, 1), np.float32)
    first, last = int(used[0]), int(used[-1])
    return first, np.ascontiguousarray(weights[:, first : last + 1])


def _separable(
    hu: NDArray[Any],
    to_native: Affine,
    shape_zyx: tuple[int, ...],
    wanted: NDArray[np.bool_] | None,
) -> Float:
    firsts, weights = zip(
        *(
            axis_operator(
                hu.shape[axis], shape_zyx[axis], to_native[axis, axis], to_native[axis, 3]
            )
            for axis in range(3)
        ),
        strict=True,
    )
    box = tuple(
        slice(first, first + matrix.shape[1]) for first, matrix in zip(firsts, weights, strict=True)
    )
    out = apply_operators(hu[box], [Operator(matrix) for matrix in weights], wanted=wanted)
    z, y, x = (matrix.sum(axis=1) for matrix in weights)
    in_plane = np.multiply.outer(y, x)
    whole = in_plane.min() > WHOLE
    for plane, covered in zip(out, z, strict=True):
        if not whole or covered <= WHOLE:
            plane += AIR_HU * (1 - covered * in_plane)
    return out


def _general(hu: NDArray[Any], to_native: Affine, shape_zyx: tuple[int, ...]) -> Float:
    """Block average where the target is coarser, then linear through the full affine."""
    ratio = np.linalg.norm(to_native[:3, :3], axis=1)
    factors = [max(1, round(r)) for r in ratio]
    blocks, shrink = block_mean(hu, factors)
    return _linear(blocks, shrink @ to_native, shape_zyx)


def resample_turned(
    hu: NDArray[Any], native: Affine, target: Affine, shape_zyx: tuple[int, ...]
) -> Float:
    """HU on a grid whose axes are turned against the native ones; outside AIR_HU.

    Native voxels much finer than the target's are averaged first; a target voxel that is longer
    along one axis is the mean of cubes along it, so that nothing aliases along any axis.

    Args:
        hu: [z y x], axes in any direction.
        native: 4x4, native voxel -> mm; may be sheared.
        target: 4x4, target voxel -> mm; orthogonal axes of any direction.
        shape_zyx: voxels of the target.
    """
    target_mm = np.linalg.norm(target[:3, :3], axis=0)
    native_mm = np.linalg.norm(native[:3, :3], axis=0)
    finest_mm = float(target_mm.min())
    blocks, shrink = block_mean(hu, [max(1, int(finest_mm / mm + 0.01)) for mm in native_mm])
    to_blocks = shrink @ np.linalg.inv(native) @ target
    parts = [max(1, round(mm / finest_mm)) for mm in target_mm]
    out = np.zeros(shape_zyx, np.float32)
    for place in product(*(range(n) for n in parts)):
        moved = np.eye(4)
        moved[:3, 3] = [(i + 0.5) / n - 0.5 for i, n in zip(place, parts, strict=True)]
        out += _linear(blocks, to_blocks @ moved, shape_zyx)
    out /= np.prod(parts)
    return out


def _linear(hu: Float, matrix: Affine, shape_zyx: tuple[int, ...]) -> Float:
    """Linear interpolation at target voxels; AIR_HU outside."""
    out = np.empty(shape_zyx, np.float32)
    ndimage.affine_transform(
        hu,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=shape_zyx,
        output=out,
        order=1,
        mode="grid-constant",
        cval=AIR_HU,
    )
    return out


def block_mean(hu: NDArray[Any], factors: list[int]) -> tuple[Float, Affine]:
    """Means over blocks of voxels; a last block that is not whole is filled up with air.

    Returns:
        float32 blocks, and the 4x4 matrix from native index to block index.
    """
    shrink = np.diag([*(1.0 / f for f in factors), 1.0])
    shrink[:3, 3] = [(1.0 / f - 1.0) / 2.0 for f in factors]
    out = hu.astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            out = _block_mean_axis(out, axis, factor)
    return out, shrink


def _block_mean_axis(hu: Float, axis: int, factor: int) -> Float:
    missing = -hu.shape[axis] % factor
    widths = [(0, missing if a == axis else 0) for a in range(3)]
    filled = np.pad(hu, widths, constant_values=AIR_HU) if missing else hu
    shape = (*hu.shape[:axis], -1, factor, *hu.shape[axis + 1 :])
    return np.asarray(filled.reshape(shape).mean(axis=axis + 1, dtype=np.float32))
