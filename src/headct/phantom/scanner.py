"""What a scanner does to a head: where it lies, what is in the beam, blur, artefacts, noise.

hu' = PSF_xy * box_z(thickness) * (gain x hu + offset + cupping + streak) + noise (RECIPE C3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from headct.phantom.fields import Floats, occupancy, paint
from headct.phantom.profile import PhantomPreset, SiteProfile

REFERENCE_MM = 3.3
"""Voxel at which a site's noise sd is defined; noise of equal density is drawn on any grid."""
CORRELATION_MM = 2.3
"""Sd of the smoothing of correlated noise."""


@dataclass(frozen=True)
class Ghost:
    """Motion: a shifted copy mixed into some slices."""

    centre_mm: float
    half_mm: float
    shift_mm_yx: tuple[float, float]
    weight: float


@dataclass(frozen=True)
class Table:
    """The head holder: part of a cylinder under the head."""

    radius_mm: float
    thickness_mm: float
    hu: float


@dataclass(frozen=True)
class Acquisition:
    """One acquisition; what a header may say about it and what it may not.

    Attributes:
        rotation_deg: of the head about the axes right (nod), anterior and superior.
        shift_mm: of the head in the scanner: right, anterior, superior.
        kernel_mm: sd of the in-plane blur; negative for a sharpening kernel.
        noise_sd_hu: at a voxel of (3.3 mm)^3.
        noise_seed: from which the noise is drawn.
    """

    manufacturer: str
    model: str
    kernel: str
    kvp: int
    slice_thickness_mm: float
    matrix: int
    fov_mm: float
    below_mm: float
    above_mm: float
    gantry_tilt_deg: float
    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    gain: float
    offset_hu: float
    noise_sd_hu: float
    noise_correlated: bool
    noise_seed: tuple[int, ...]
    kernel_mm: float
    cupping_hu: float
    streak_hu: float
    ghost: Ghost | None
    table: Table

    @property
    def rotation(self) -> NDArray[np.float64]:
        """3x3 matrix (x, y, z) that turns the head frame into the scanner's."""
        a, b, c = np.deg2rad(self.rotation_deg)
        nod = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
        roll = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
        turn = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
        return np.array(turn) @ np.array(roll) @ np.array(nod)


def draw_acquisition(
    rng: np.random.Generator, site: SiteProfile, preset: PhantomPreset
) -> Acquisition:
    """One scan's protocol, pose and artefacts at a site."""
    scanner = site.scanners[int(rng.integers(len(site.scanners)))]
    tilted = rng.random() < site.tilted_fraction
    turns = rng.normal(0, (site.tilt_sd_deg, site.turn_sd_deg, site.turn_sd_deg))
    shift = rng.normal(0, site.shift_sd_mm, 3) * preset.shift_factor
    turns = np.clip(turns, -25, 25) * preset.rotation_factor
    return Acquisition(
        manufacturer=scanner.manufacturer,
        model=scanner.model,
        kernel=scanner.kernel,
        kvp=scanner.kvp,
        slice_thickness_mm=_rounded(rng.uniform(*site.slice_thickness_mm), 0.25),
        matrix=site.matrix,
        fov_mm=_rounded(rng.uniform(*site.fov_mm), 1.0),
        below_mm=float(rng.uniform(*site.below_mm)),
        above_mm=float(rng.uniform(*site.above_mm)),
        gantry_tilt_deg=_rounded(rng.uniform(*site.gantry_tilt_deg), 0.5) if tilted else 0.0,
        rotation_deg=_three(turns),
        shift_mm=_three(shift),
        gain=_around(rng, 1.0, site.gain_sd, site.gain_range),
        offset_hu=_around(rng, 0.0, site.offset_sd_hu, site.offset_range_hu),
        noise_sd_hu=float(rng.uniform(*site.noise_sd_hu)) * preset.noise_factor,
        noise_correlated=bool(rng.random() < site.correlated_noise_fraction),
        noise_seed=tuple(int(v) for v in rng.integers(0, 2**31, 4)),
        kernel_mm=_draw_kernel(rng, site),
        cupping_hu=float(rng.uniform(*site.cupping_hu)),
        streak_hu=float(rng.uniform(*site.streak_hu)),
        ghost=_draw_ghost(rng) if rng.random() < site.ghost_fraction else None,
        table=Table(
            float(rng.uniform(*site.table_radius_mm)),
            float(rng.uniform(*site.table_thickness_mm)),
            float(rng.uniform(*site.table_hu)),
        ),
    )


def _rounded(value: float, step: float) -> float:
    return round(float(value) / step) * step


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _around(
    rng: np.random.Generator, mean: float, sd: float, interval: tuple[float, float] | None
) -> float:
    return float(rng.normal(mean, sd) if interval is None else rng.uniform(*interval))


def _draw_kernel(rng: np.random.Generator, site: SiteProfile) -> float:
    width, chance = float(rng.uniform(*site.kernel_mm)), rng.random()
    if chance < site.blur_fraction:
        return width
    return -width if chance < site.blur_fraction + site.sharpen_fraction else 0.0


def _draw_ghost(rng: np.random.Generator) -> Ghost:
    angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(2, 5)
    return Ghost(
        centre_mm=float(rng.uniform(-50, 70)),
        half_mm=float(rng.uniform(5, 30)),
        shift_mm_yx=(float(size * np.sin(angle)), float(size * np.cos(angle))),
        weight=float(rng.uniform(0.1, 0.3)),
    )


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


def apply_scanner(hu: Floats, grid: Grid, acquisition: Acquisition) -> Floats:
    """Calibration, artefacts, kernel and noise; `hu` is changed in place and returned."""
    a = acquisition
    cx, cy, cz = a.shift_mm
    radius2 = ((grid.right - np.float32(cx)) ** 2 + (grid.anterior - np.float32(cy)) ** 2) * (
        np.float32(1e-4)
    )
    radius2 = np.minimum(radius2, 1)
    base = np.exp(((grid.superior - np.float32(cz - 42)) * np.float32(1 / 12)) ** 2 * -1)
    hu += np.maximum(hu, -200) * np.float32(a.gain - 1)
    hu += np.float32(a.cupping_hu) * (radius2 - np.float32(0.5)) + np.float32(a.offset_hu)
    hu -= np.float32(a.streak_hu) * base * _petrous_band(grid, cx, cy)
    if a.ghost is not None:
        _apply_ghost(hu, grid, a.ghost)
    if a.kernel_mm:
        _apply_kernel(hu, grid.spacing_mm_zyx, a.kernel_mm)
    profile = np.float32(0.7) + np.float32(0.6) * (1 - radius2) + np.float32(0.5) * base
    hu += draw_noise(hu.shape, grid.spacing_mm_zyx, a) * profile
    return hu


def _petrous_band(grid: Grid, cx: float, cy: float) -> Floats:
    across = np.exp(((grid.anterior - np.float32(cy - 20)) * np.float32(1 / 9)) ** 2 * -1)
    between = np.exp(((grid.right - np.float32(cx)) * np.float32(1 / 32)) ** 4 * -1)
    stripes = 1 + np.float32(0.5) * np.cos((grid.anterior - np.float32(cy)) * np.float32(0.9))
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


def _apply_kernel(hu: Floats, spacing_mm_zyx: tuple[float, float, float], kernel_mm: float) -> None:
    blurred = hu
    for axis in (1, 2):
        blurred = _blur(blurred, abs(kernel_mm) / spacing_mm_zyx[axis], axis)
    if kernel_mm > 0:
        hu[...] = blurred
    else:
        hu += np.float32(0.8) * (hu - blurred)


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
    noise *= np.float32(sd)
    return noise


def _reference_gain() -> float:
    """By how much the smoothing of correlated noise lowers its sd on the reference grid, undone."""
    offset = np.arange(-2, 3)
    taps = np.exp(-0.5 * (offset * REFERENCE_MM / CORRELATION_MM) ** 2)
    taps /= taps.sum()
    return float((taps**2).sum() ** -1.5)
