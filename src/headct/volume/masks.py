"""Exact operations on boolean volumes; what lies beyond the border counts for nothing.

The same as those of scipy.ndimage of these names, five to ten times faster: shifted arrays instead
of a walk over all neighbours of every voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dilated(mask: Mask, axes: Sequence[int] = (0, 1, 2)) -> Mask:
    """With the direct neighbours along some axes."""
    out = mask.copy()
    for axis in axes:
        source, target = mask.swapaxes(0, axis), out.swapaxes(0, axis)
        target[1:] |= source[:-1]
        target[:-1] |= source[1:]
    return out


def dilated_within(mask: Mask, limits: Mask, n: int = 1) -> Mask:
    """Dilated `n` times along all axes; voxels outside of the limits never come to it."""
    for _ in range(n):
        mask = mask | (dilated(mask) & limits)
    return mask


def eroded_by_box(mask: Mask, sizes: Sequence[int]) -> Mask:
    """Where a box of odd sizes, cut at the border, lies in the mask."""
    return ~dilated_by_box(~mask, sizes)


def dilated_by_box(mask: Mask, sizes: Sequence[int]) -> Mask:
    """Where a box of odd sizes meets the mask."""
    for axis, size in enumerate(sizes):
        if size > 1:
            mask = _windows(mask, axis, size)
    return mask


def _windows(mask: Mask, axis: int, size: int) -> Mask:
    """Any in a window along one axis: windows double until they are as wide as they shall be."""
    half = size // 2
    padded = np.zeros([n + 2 * half * (i == axis) for i, n in enumerate(mask.shape)], bool)
    found = padded.swapaxes(0, axis)
    found[half : half + mask.shape[axis]] = mask.swapaxes(0, axis)
    width = 1
    while width < size:
        step = min(width, size - width)
        found = found[:-step] | found[step:]
        width += step
    return found.swapaxes(0, axis)


def between(mask: Mask, axis: int) -> Mask:
    """From the first to the last True of every line along an axis."""
    lines = mask.swapaxes(axis, -1)
    n = lines.shape[-1]
    first = lines.argmax(axis=-1).astype(np.int16)
    last = (n - 1 - lines[..., ::-1].argmax(axis=-1)).astype(np.int16)
    last[~lines.any(axis=-1)] = -1
    place = np.arange(n, dtype=np.int16)
    inside = (place >= first[..., None]) & (place <= last[..., None])
    return np.asarray(inside.swapaxes(axis, -1))


def box_of(mask: Mask, margin: int = 0) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask, with a margin where there is room; None if empty."""
    box = []
    for axis, n in enumerate(mask.shape):
        used = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        if used.size == 0:
            return None
        box.append(slice(max(0, int(used[0]) - margin), min(n, int(used[-1]) + 1 + margin)))
    return tuple(box)
