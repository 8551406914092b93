"""The head stretched to a cube, as FM-CT's usual chain does it: a faithful baseline, nothing else.

The chain: axes to R, A, S; cubic spline to 1 mm voxels; the box of what is above a threshold;
windows; stretched to the cube. Along the axes of the scan every step but the box and the windows
is linear and separable, so that one banded operator an axis does the work.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.dicom.reasons import Reason
from headct.errors import Refusal, UsageError
from headct.volume.preprocessing import Preprocessing, Stretch
from headct.volume.resample import closest_ras
from headct.volume.separable import Operator, Prepare, apply_operators
from headct.volume.volume import MAX_HU, MIN_HU, Volume
from headct.volume.window import Window

Float = NDArray[np.float32]
Affine = NDArray[np.float64]
SPACING_MM = 1.0
SAME_SPACING_MM = 1e-3
"""Axes this close to 1 mm are left as they are."""
PADDING = 12
"""Voxels that the edge is repeated for before the spline is fitted, as scipy does for `nearest`."""
RADIUS = 12
"""Voxels around a place whose weight in the cubic spline is above 1e-6."""


def to_channels(volume: Volume, preprocessing: Preprocessing) -> Float:
    """Windows of the stretched head, windowed before it is stretched.

    Args:
        volume: HU on its native grid, any orientation; a sheared affine is straightened.
        preprocessing: one that stretches, with windows, such as that named `fmct`.

    Returns:
        float32 [c z y x], each channel in the range of `stretched.scaled_to`.

    Raises:
        UsageError: the preprocessing has no windows to put before the stretch.
        Refusal: nothing in the volume is above the threshold (`not-head`).

    Source:
        MONAI 1.6: Orientation("RAS"), Spacing(1 mm, order 3), CropForeground, ScaleIntensityRange,
        Resize; equal to them within 1e-3 of a window (tests/volume/test_stretched.py).
    """
    stretch = preprocessing.stretched
    if stretch is None or not stretch.windows:
        raise UsageError("this preprocessing has no windows of its own", remedy="take `fmct`")
    hu, _ = _foreground(volume, stretch)
    low, high = stretch.scaled_to
    operators = [
        _stretch_operator(n, m, stretch.resize)
        for n, m in zip(hu.shape, preprocessing.shape_zyx, strict=True)
    ]
    channels = np.empty((len(stretch.windows), *preprocessing.shape_zyx), np.float32)
    for channel, window in zip(channels, stretch.windows, strict=True):
        channel[:] = apply_operators(hu, operators, prepare=_windowed(window, low, high))
    return channels


def _windowed(window: Window, low: float, high: float) -> Prepare:
    """HU -> values of a channel, in place."""
    factor = np.float32((high - low) / window.width_hu)
    lowest_hu = window.level_hu - window.width_hu / 2

    def prepare(hu: Float) -> None:
        np.subtract(hu, lowest_hu, out=hu)
        np.multiply(hu, factor, out=hu)
        np.add(hu, low, out=hu)
        np.clip(hu, low, high, out=hu)

    return prepare


def to_stretched(volume: Volume, preprocessing: Preprocessing) -> Volume:
    """HU of the stretched head, for a store; windows come after.

    Args:
        volume: HU on its native grid.
        preprocessing: one that stretches, without windows, such as that named `fmct-hu`.

    Returns:
        HU int16 [z y x], with the affine that it has for this head: its voxels are no cubes.

    Raises:
        UsageError: the preprocessing has windows before the stretch: that is no HU any more.
        Refusal: nothing in the volume is above the threshold (`not-head`).
    """
    require_hu(preprocessing)
    stretch = preprocessing.stretched or Stretch()
    hu, affine = _foreground(volume, stretch)
    shape = preprocessing.shape_zyx
    operators = [
        _stretch_operator(n, m, stretch.resize) for n, m in zip(hu.shape, shape, strict=True)
    ]
    out = np.rint(apply_operators(hu, operators)).clip(MIN_HU, MAX_HU).astype(np.int16)
    scale = np.asarray(hu.shape) / shape
    grid = np.diag([*scale, 1.0])
    grid[:3, 3] = scale / 2 - 0.5
    step = {
        "step": "canonical",
        "preprocessing": preprocessing.hash,
        "resampling": "stretched",
        "native_shape_zyx": list(volume.shape_zyx),
        "native_affine_zyx": volume.affine_zyx.ravel().tolist(),
    }
    return volume.with_step(step, hu=out, affine_zyx=affine @ grid)


def require_hu(preprocessing: Preprocessing) -> None:
    """See that volumes of this preprocessing hold HU.

    Raises:
        UsageError: its windows come before the stretch.
    """
    if preprocessing.stretched is not None and preprocessing.stretched.windows:
        raise UsageError(
            "windows before the stretch leave no HU that a store could hold",
            remedy="take the grid `fmct-hu` for stores and many files (headct import fmct has it as"
            " --grid); a bundle of `fmct` takes one series at a time: bundle.embed(path)",
        )


def _foreground(volume: Volume, stretch: Stretch) -> tuple[Float, Affine]:
    """HU at 1 mm in the box of what is above the threshold, and the affine of the box."""
    native, affine = closest_ras(volume.hu, volume.affine_zyx)
    hu, affine = _to_1mm(native, affine)
    above = hu > stretch.foreground_above_hu
    if not above.any():
        raise Refusal("nothing in the volume is as dense as a head", code=Reason.NOT_HEAD)
    box = []
    for axis in range(3):
        used = np.flatnonzero(above.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    corner = np.eye(4)
    corner[:3, 3] = [part.start for part in box]
    return hu[tuple(box)], affine @ corner


def _to_1mm(hu: NDArray[Any], affine: Affine) -> tuple[Float, Affine]:
    """Cubic spline to 1 mm along the axes of the scan; shear is straightened by the slow way."""
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    step = np.where(np.abs(spacing - SPACING_MM) <= SAME_SPACING_MM, spacing, SPACING_MM)
    # the axis of rows keeps its direction, then that of columns, as if x came first
    sheared = np.linalg.cholesky((axes.T @ axes)[::-1, ::-1])[::-1, ::-1].T
    target = np.eye(4)
    target[:3, :3] = axes @ np.linalg.inv(sheared) * step
    to_native = np.asarray(np.linalg.solve(axes, target[:3, :3]), np.float64)
    corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in hu.shape], indexing="ij"), -1)
    reached = np.linalg.solve(to_native, corners.reshape(-1, 3).T)
    shape = tuple(int(n) for n in np.round(np.ptp(reached, axis=1) + 1.0))
    start = np.zeros(3)
    if np.abs(to_native - np.diag(np.diag(to_native))).max() < 1e-6:
        operators = [
            _spline_operator(n, m, round(s, 9))
            for n, m, s in zip(hu.shape, shape, np.diag(to_native), strict=True)
        ]
        out = apply_operators(hu, operators)
    else:
        start = _start(corners.reshape(-1, 3).T, reached, hu.shape, shape, to_native)
        out = ndimage.affine_transform(
            hu.astype(np.float32), to_native, start, shape, order=3, mode="nearest"
        )
    target[:3, 3] = axes @ start + affine[:3, 3]
    return out, target


def _start(
    corners: NDArray[np.float64],
    reached: NDArray[np.float64],
    native_shape: tuple[int, ...],
    shape: tuple[int, ...],
    to_native: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Native index of the first target voxel: the corner that comes first along all axes.

    A sheared stack has none, and the centres are put together.
    """
    for i in range(corners.shape[1]):
        if np.allclose((reached - reached[:, i : i + 1]).min(axis=1), 0.0, atol=1e-6):
            return corners[:, i]
    return np.asarray(native_shape) / 2 - to_native @ (np.asarray(shape) / 2)


@lru_cache(maxsize=32)
def _spline_operator(n_in: int, n_out: int, step: float) -> Operator:
    """Cubic spline through all voxels, read at every `step`-th place; the edge is repeated.

    Source:
        Cubic B-splines; scipy.ndimage fits them, and this reads them along one axis.
    """
    if step == 1.0 and n_in == n_out:
        return Operator(np.eye(n_in))
    padded = np.pad(np.eye(n_in), ((PADDING, PADDING), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(padded, 3, axis=0, mode="nearest")
    place = np.clip(step * np.arange(n_out), 0, n_in - 1) + PADDING
    whole = np.floor(place).astype(int)
    t = place - whole
    weights = [
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    ]
    matrix = sum(w[:, None] * coefficients[whole + i - 1] for i, w in enumerate(weights))
    far = np.abs(np.arange(n_in)[None, :] - (place - PADDING)[:, None]) > RADIUS
    return Operator(np.where(far, 0.0, matrix))


@lru_cache(maxsize=256)
def _stretch_operator(n_in: int, n_out: int, resize: str) -> Operator:
    """`area`: means over the voxels that a target voxel touches; `linear`: between centres."""
    matrix = np.zeros((n_out, n_in))
    if resize == "area":
        for i in range(n_out):
            first, last = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
            matrix[i, first:last] = 1.0 / (last - first)
        return Operator(matrix)
    place = np.maximum((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0.0)
    low = np.minimum(np.floor(place).astype(int), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    np.add.at(matrix, (np.arange(n_out), low), 1.0 - (place - low))
    np.add.at(matrix, (np.arange(n_out), high), place - low)
    return Operator(matrix)
