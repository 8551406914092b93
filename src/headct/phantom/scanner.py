"""What a scanner does to a head: what is in the beam, blur, artefacts, noise.

hu' = PSF_xy * box_z(thickness) * (gain x hu + offset + cupping + streak) + noise (RECIPE C3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from headct.phantom.acquisition import Acquisition, Ghost, Table
from headct.phantom.exact import cos, exp
from headct.phantom.fields import Floats, occupancy, paint
from headct.phantom.metal import Streak, add_streaks

REFERENCE_MM = 3.3
"""Voxel at which a site's noise sd is defined; noise of equal density is drawn on any grid."""
CORRELATION_MM = 2.3
"""Sd of the smoothing of correlated noise."""


@dataclass(frozen=True)
class Grid:
    """Scanner coordinates of a grid's voxels, broadcastable to [z y x], float32 mm."""

    superior: Floats
    anterior: Floats
    right: Floats
    spacing_mm_zyx: tuple[float, float, float]

    @classmethod
    def of(cls, shape_zyx: tuple[int, int, int], affine_zyx: NDArray[np.float64]) -> Grid:
        """Coordinates under an affine; an axis along which one does not change has length 1."""
        axes = [
            np.arange(n).reshape([-1 if k == axis else 1 for k in range(3)])
            for axis, n in enumerate(shape_zyx)
        ]
        rows = []
        for row in affine_zyx[:3]:
            total = np.full((1, 1, 1), row[3])
            for index, step in zip(axes, row[:3], strict=True):
                if abs(step) > 1e-9:
                    total = total + index * step
            rows.append(total.astype(np.float32))
        z, y, x = np.linalg.norm(affine_zyx[:3, :3], axis=0)
        return cls(rows[0], rows[1], rows[2], (float(z), float(y), float(x)))


def paint_table(hu: Floats, grid: Grid, table: Table, lowest_mm: float) -> None:
    """Put the head holder under a head whose lowest point (posterior) is at `lowest_mm`."""
    anterior = grid.anterior - np.float32(lowest_mm - 1.5 + table.radius_mm)
    radius = np.sqrt(anterior**2 + grid.right**2)
    shell = np.abs(radius - np.float32(table.radius_mm + table.thickness_mm / 2))
    shell = shell - np.float32(table.thickness_mm / 2)
    shell = np.maximum(shell, anterior + np.float32(0.25 * table.radius_mm))
    share = occupancy(shell, grid.spacing_mm_zyx[2])
    rows = np.flatnonzero(share.any(axis=(0, 2)))
    if rows.size:
        near = slice(int(rows[0]), int(rows[-1]) + 1)
        air = np.clip(hu[:, near] * np.float32(-1 / 200) - 4, 0, 1)
        paint(hu[:, near], share[:, near] * air, table.hu)


def apply_scanner(
    hu: Floats, grid: Grid, acquisition: Acquisition, streaks: tuple[Streak, ...] = ()
) -> Floats:
    """Calibration, artefacts, kernel and noise; `hu` is changed in place and returned."""
    a = acquisition
    cx, cy, cz = a.shift_mm
    radius2 = ((grid.right - np.float32(cx)) ** 2 + (grid.anterior - np.float32(cy)) ** 2) * (
        np.float32(1e-4)
    )
    radius2 = np.minimum(radius2, 1)
    base = exp(((grid.superior - np.float32(cz - 42)) * np.float32(1 / 12)) ** 2 * -1)
    hu += np.maximum(hu, -200) * np.float32(a.gain - 1)
    hu += np.float32(a.cupping_hu) * (radius2 - np.float32(0.5)) + np.float32(a.offset_hu)
    hu -= np.float32(a.streak_hu) * base * _petrous_band(grid, cx, cy)
    if streaks:
        add_streaks(hu, (grid.superior, grid.anterior, grid.right), a.gantry_tilt_deg, streaks)
    if a.ghost is not None:
        _apply_ghost(hu, grid, a.ghost)
    if a.kernel_mm:
        _apply_kernel(hu, grid.spacing_mm_zyx, a.kernel_mm, a.overshoot)
    profile = np.float32(0.7) + np.float32(0.6) * (1 - radius2) + np.float32(0.5) * base
    hu += draw_noise(hu.shape, grid.spacing_mm_zyx, a) * profile
    return hu


def _petrous_band(grid: Grid, cx: float, cy: float) -> Floats:
    across = exp(((grid.anterior - np.float32(cy - 20)) * np.float32(1 / 9)) ** 2 * -1)
    between = exp(-((((grid.right - np.float32(cx)) * np.float32(1 / 32)) ** 2) ** 2))
    stripes = 1 + np.float32(0.5) * cos((grid.anterior - np.float32(cy)) * np.float32(0.9))
    band: Floats = across * between * stripes
    return band


def _apply_ghost(hu: Floats, grid: Grid, ghost: Ghost) -> None:
    height = grid.superior.reshape(grid.superior.shape[0], -1).mean(axis=1)
    inside = np.flatnonzero(np.abs(height - ghost.centre_mm) < ghost.half_mm)
    if not inside.size or height.size == 1:
        return
    slices = slice(int(inside[0]), int(inside[-1]) + 1)
    moved = hu[slices]
    for axis, shift in zip((1, 2), ghost.shift_mm_yx, strict=True):
        steps = shift / grid.spacing_mm_zyx[axis]
        whole = int(np.floor(steps))
        part = np.float32(steps - whole)
        moved = (1 - part) * np.roll(moved, whole, axis) + part * np.roll(moved, whole + 1, axis)
    hu[slices] += np.float32(ghost.weight) * (moved - hu[slices])


def _apply_kernel(
    hu: Floats, spacing_mm_zyx: tuple[float, float, float], kernel_mm: float, overshoot: float
) -> None:
    blurred = hu
    for axis in (1, 2):
        blurred = _blur(blurred, abs(kernel_mm) / spacing_mm_zyx[axis], axis)
    if kernel_mm > 0:
        hu[...] = blurred
    else:
        hu += np.float32(overshoot) * (hu - blurred)


def _blur(hu: Floats, sd_voxels: float, axis: int) -> Floats:
    """Gaussian blur; on a coarse grid three taps with the right second moment."""
    if sd_voxels > 0.7:
        blurred: Floats = gaussian_filter1d(hu, sd_voxels, axis, mode="nearest", truncate=3)
        return blurred
    weight = np.float32(0.5 * sd_voxels**2)
    out = hu * (1 - 2 * weight)
    ahead, behind = [slice(None)] * 3, [slice(None)] * 3
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    out[tuple(ahead)] += weight * hu[tuple(behind)]
    out[tuple(behind)] += weight * hu[tuple(ahead)]
    first, last = [slice(None)] * 3, [slice(None)] * 3
    first[axis], last[axis] = slice(0, 1), slice(-1, None)
    out[tuple(first)] += weight * hu[tuple(first)]
    out[tuple(last)] += weight * hu[tuple(last)]
    return out


def draw_noise(
    shape_zyx: tuple[int, ...], spacing_mm_zyx: tuple[float, float, float], a: Acquisition
) -> Floats:
    """Noise of the density that gives the wanted sd in a reference voxel."""
    rng = np.random.default_rng(a.noise_seed)
    noise = rng.standard_normal(shape_zyx, dtype=np.float32)
    volume_mm3 = spacing_mm_zyx[0] * spacing_mm_zyx[1] * spacing_mm_zyx[2]
    sd = a.noise_sd_hu * np.sqrt(REFERENCE_MM**3 / volume_mm3)
    if a.noise_correlated:
        for axis, mm in enumerate(spacing_mm_zyx):
            gaussian_filter1d(
                noise, CORRELATION_MM / mm, axis, output=noise, mode="wrap", truncate=3
            )
        sd *= _reference_gain()
    if a.bone:
        _apply_kernel(noise, spacing_mm_zyx, a.kernel_mm, a.overshoot)
    noise *= np.float32(sd)
    return noise


def _reference_gain() -> float:
    """By how much the smoothing of correlated noise lowers its sd on the reference grid, undone."""
    offset = np.arange(-2, 3)
    taps = np.exp(-0.5 * (offset * REFERENCE_MM / CORRELATION_MM) ** 2)
    taps /= taps.sum()
    return float((taps**2).sum() ** -1.5)
