"""Random fields and shapes that anatomy is made of: periodic noise, smooth maps, signed distances.

Everything is float32; a distance is in mm, negative inside.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Xyz = tuple[float, float, float]

NOISE_VOXELS = 128
"""Per axis; a power of two, so that wrapping is one bit operation."""
NOISE_MM = 1.3
"""mm per voxel of a noise volume; it repeats after 166 mm."""
LINEAR_BELOW_MM = 1.4
"""Noise is interpolated linearly on finer grids, and looked up at the nearest voxel on coarser."""
FAR_MM = 9.0
"""Sheet distances are capped here."""


@lru_cache(maxsize=8)
def band_noise(name: str, wavelength_mm: float) -> Floats:
    """Periodic noise of one band of wavelengths: [n n n], mean 0, sd 1.

    Args:
        name: another name gives another, independent volume.
        wavelength_mm: centre of the band; its sd is a fifth of its frequency.
    """
    rng = np.random.default_rng([*name.encode(), NOISE_VOXELS])
    white = rng.standard_normal((NOISE_VOXELS,) * 3, dtype=np.float32).astype(np.float64)
    frequency = np.fft.fftfreq(NOISE_VOXELS, NOISE_MM)
    half = np.fft.rfftfreq(NOISE_VOXELS, NOISE_MM)
    radius = np.sqrt(
        frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2
    )
    band = np.exp(-0.5 * ((radius * wavelength_mm - 1) / 0.2) ** 2)
    noise = np.fft.irfftn(np.fft.rfftn(white) * band, s=white.shape, axes=(0, 1, 2))
    return np.ascontiguousarray(noise / noise.std(), dtype=np.float32)


@lru_cache(maxsize=8)
def sheet_distance(name: str, wavelength_mm: float) -> Floats:
    """Periodic volume of the distance in mm to the zero level of noise: [n n n], 0..FAR_MM.

    The first-order distance |f| / |grad f|; its zero level is a set of winding sheets.
    """
    noise = band_noise(name, wavelength_mm)
    slope = np.sqrt(
        sum(
            (np.roll(noise, -1, axis) - np.roll(noise, 1, axis)) ** 2 / (2 * NOISE_MM) ** 2
            for axis in range(3)
        )
    )
    distance = np.abs(noise) / np.maximum(slope, 1e-3)
    return np.minimum(distance, np.float32(FAR_MM)).astype(np.float32)


class NoiseLookup:
    """Noise volumes at given points; the indices are made once for all volumes.

    Args:
        x: y: z: coordinates in mm, any common shape.
        offset: where a patient's own noise begins, mm.
        linear: interpolate instead of taking the nearest voxel.
    """

    def __init__(self, x: Floats, y: Floats, z: Floats, offset: Xyz, linear: bool) -> None:
        scaled = [_to_voxels(c, o) for c, o in zip((z, y, x), offset[::-1], strict=True)]
        self.corners: list[tuple[NDArray[np.intp], Floats | None]]
        if not linear:
            self.corners = [(_flat(*(_wrap(c + np.float32(0.5)) for c in scaled)), None)]
            return
        low = [np.floor(c) for c in scaled]
        part = [c - f for c, f in zip(scaled, low, strict=True)]
        first = [_wrap(f) for f in low]
        second = [(f + 1) & (NOISE_VOXELS - 1) for f in first]
        self.corners = []
        for corner in range(8):
            bits = [corner >> 2 & 1, corner >> 1 & 1, corner & 1]
            index = _flat(*(s if b else f for b, f, s in zip(bits, first, second, strict=True)))
            weights = [p if b else 1 - p for b, p in zip(bits, part, strict=True)]
            self.corners.append((index, weights[0] * weights[1] * weights[2]))

    def __call__(self, volume: Floats) -> Floats:
        """The volume at the points."""
        flat = volume.reshape(-1)
        total: Floats = np.zeros((), np.float32)
        for index, weight in self.corners:
            values = flat.take(index)
            if weight is None:
                return values
            total = total + values * weight
        return total


def _to_voxels(coordinate: Floats, offset_mm: float) -> Floats:
    return coordinate * np.float32(1 / NOISE_MM) + np.float32(offset_mm / NOISE_MM + 8192)


def _wrap(voxel: Floats) -> NDArray[np.int32]:
    return voxel.astype(np.int32) & (NOISE_VOXELS - 1)


def _flat(z: NDArray[np.int32], y: NDArray[np.int32], x: NDArray[np.int32]) -> NDArray[np.intp]:
    return ((z * NOISE_VOXELS + y) * NOISE_VOXELS + x).astype(np.intp)


def upsampling(n_fine: int, step: int) -> Floats:
    """Matrix [n_fine, n_coarse] that interpolates a lattice of every `step`-th voxel (Catmull-Rom).

    The lattice has one node before the first voxel and two after the last: node k lies at voxel
    (k - 1) * step. A linear ramp comes out exactly.
    """
    n_coarse = lattice_nodes(n_fine, step)
    position = np.arange(n_fine) / step
    cell = position.astype(int)
    t = position - cell
    matrix = np.zeros((n_fine, n_coarse), np.float32)
    rows = np.arange(n_fine)
    for k, weight in enumerate(
        (
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        )
    ):
        matrix[rows, cell + k] = weight
    return matrix


def lattice_nodes(n_fine: int, step: int) -> int:
    """Nodes per axis of the lattice that `upsampling` reads."""
    return (n_fine - 1) // step + 4


def occupancy(distance: Floats, blur_mm: float) -> Floats:
    """Share of a voxel that lies inside: partial volume for free."""
    share = distance * np.float32(-1 / blur_mm)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def paint(hu: Floats, share: Floats, value: float | Floats) -> None:
    """Mix a tissue into HU in place, by its share of each voxel."""
    change: Floats = value - hu
    change *= share
    hu += change


def ellipsoid(x: Floats, y: Floats, z: Floats, centre: Xyz, radii: Xyz) -> Floats:
    """Distance to an axis-aligned ellipsoid, exact to first order at its surface."""
    inner = np.zeros((), np.float32)
    outer = np.zeros((), np.float32)
    for c, c0, r in zip((x, y, z), centre, radii, strict=True):
        u = c - np.float32(c0)
        u *= np.float32(1 / r)
        u *= u
        inner = inner + u
        outer = outer + u * np.float32(1 / r**2)
    norm = np.sqrt(inner)
    distance: Floats = (norm * norm - norm) / np.sqrt(outer + np.float32(1e-12))
    return distance


def capsule(x: Floats, y: Floats, z: Floats, a: Xyz, b: Xyz, radius: float) -> Floats:
    """Distance to a capsule between two points."""
    axis = np.subtract(b, a)
    length2 = float(axis @ axis)
    px, py, pz = (c - np.float32(o) for c, o in zip((x, y, z), a, strict=True))
    ax, ay, az = (np.float32(v / length2) for v in axis)
    t = np.clip(px * ax + py * ay + pz * az, 0, 1)
    for p, v in zip((px, py, pz), axis, strict=True):
        p -= t * np.float32(v)
    distance: Floats = np.sqrt(px * px + py * py + pz * pz) - np.float32(radius)
    return distance


def smooth_min(a: Floats, b: Floats, reach_mm: float) -> Floats:
    """Union of two shapes with a fillet of about `reach_mm`."""
    share = np.clip(0.5 + (b - a) * np.float32(0.5 / reach_mm), 0, 1)
    union: Floats = b + (a - b) * share - np.float32(reach_mm) * share * (1 - share)
    return union


def smooth_step(value: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, a cubic between."""
    t = np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    step: Floats = t * t * (3 - 2 * t)
    return step
