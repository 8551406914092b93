"""One acquisition: protocol, pose and artefacts, drawn from a site's profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headct.phantom.profile import PhantomPreset
from headct.phantom.site import FLOOR_MM, VERTEX_MM, Scanner, SiteProfile
from headct.phantom.spectrum import iodine_factor

REFERENCE_MAS, REFERENCE_KVP = 250.0, 120
"""Dose at which a site's noise is defined."""
SOFT_OVERSHOOT = 0.8
"""Share of the difference to the blurred picture that an edge-enhancing soft kernel adds."""

Told = Literal["agent", "series", "study", ""]
"""Element of the header that speaks of contrast medium, if any."""


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
class Contrast:
    """Contrast medium: what it adds to blood at this tube voltage, and which element says so."""

    vessel_hu: float
    told: Told


@dataclass(frozen=True)
class Acquisition:
    """One acquisition; what a header may say about it and what it may not.

    Attributes:
        rotation_deg: of the head about the axes right (nod), anterior and superior.
        shift_mm: of the head in the scanner: right, anterior, superior.
        kernel_mm: sd of the in-plane blur; negative for a sharpening kernel.
        overshoot: share of the difference to the blurred picture that a sharpening kernel adds.
        metal_hu: strength of streaks from metal, 10 mm away from it.
        noise_sd_hu: at a voxel of (3.3 mm)^3.
        noise_seed: from which the noise is drawn.
    """

    manufacturer: str
    model: str
    kernel: str
    bone: bool
    kvp: int
    mas: float
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
    overshoot: float
    contrast: Contrast | None
    metal_hu: float
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
    protocol = rng.spawn(1)[0]
    upto = np.cumsum([scanner.share for scanner in site.scanners])
    scanner = site.scanners[int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))]
    mas = _rounded(protocol.uniform(*scanner.mas), 1.0)
    tilted = rng.random() < site.tilted_fraction
    turns = rng.normal(0, (site.tilt_sd_deg, site.turn_sd_deg, site.turn_sd_deg))
    shift = rng.normal(0, site.shift_sd_mm, 3) * preset.shift_factor
    turns = np.clip(turns, -25, 25) * preset.rotation_factor
    thickness_mm = _rounded(rng.uniform(*site.slice_thickness_mm), _step(site))
    fov_mm = _rounded(rng.uniform(*site.fov_mm), 1.0)
    below_mm, above_mm = _draw_coverage(rng, protocol, site, float(shift[2]))
    offset_sd_hu = site.offset_sd_hu * preset.calibration_factor
    noise_factor = preset.noise_factor * dose_noise(scanner.kvp, mas)
    if scanner.bone:
        noise_factor *= float(protocol.uniform(*site.bone_noise_factor))
    return Acquisition(
        manufacturer=scanner.manufacturer,
        model=scanner.model,
        kernel=scanner.kernel,
        bone=scanner.bone,
        kvp=scanner.kvp,
        mas=mas,
        slice_thickness_mm=thickness_mm,
        matrix=site.matrix,
        fov_mm=fov_mm,
        below_mm=below_mm,
        above_mm=above_mm,
        gantry_tilt_deg=_rounded(rng.uniform(*site.gantry_tilt_deg), 0.5) if tilted else 0.0,
        rotation_deg=_three(turns),
        shift_mm=_three(shift),
        gain=_around(rng, 1.0, site.gain_sd * preset.calibration_factor, site.gain_range),
        offset_hu=_around(rng, 0.0, offset_sd_hu, site.offset_range_hu),
        noise_sd_hu=float(rng.uniform(*site.noise_sd_hu)) * noise_factor,
        noise_correlated=bool(rng.random() < site.correlated_noise_fraction),
        noise_seed=tuple(int(v) for v in rng.integers(0, 2**31, 4)),
        kernel_mm=_draw_kernel(rng, site, scanner),
        overshoot=float(protocol.uniform(*site.bone_overshoot)) if scanner.bone else SOFT_OVERSHOOT,
        contrast=_draw_contrast(protocol, site, scanner),
        metal_hu=float(protocol.uniform(*site.metal_streak_hu)),
        cupping_hu=float(rng.uniform(*site.cupping_hu)),
        streak_hu=float(rng.uniform(*site.streak_hu)),
        ghost=_draw_ghost(rng) if rng.random() < site.ghost_fraction else None,
        table=Table(
            float(rng.uniform(*site.table_radius_mm)),
            float(rng.uniform(*site.table_thickness_mm)),
            float(rng.uniform(*site.table_hu)),
        ),
    )


def dose_noise(kvp: float, mas: float) -> float:
    """Noise relative to that at 250 mAs and 120 kVp: 1 / sqrt(dose), dose ~ mAs x kVp^2.5."""
    return float((REFERENCE_MAS / mas) ** 0.5 * (REFERENCE_KVP / kvp) ** 1.25)


def _step(site: SiteProfile) -> float:
    """Slice thickness comes in steps of a quarter of a mm, thin slices in finer ones."""
    return 0.25 if site.slice_thickness_mm[0] >= 1 else 0.05


def _draw_coverage(
    rng: np.random.Generator, protocol: np.random.Generator, site: SiteProfile, shift_mm: float
) -> tuple[float, float]:
    below_mm, above_mm = float(rng.uniform(*site.below_mm)), float(rng.uniform(*site.above_mm))
    chance, missing_mm = protocol.random(), float(protocol.uniform(*site.cut_mm))
    if chance < site.vertex_cut_fraction:
        above_mm = min(above_mm, VERTEX_MM + shift_mm - missing_mm)
    elif chance < site.vertex_cut_fraction + site.base_cut_fraction:
        below_mm = min(below_mm, -(FLOOR_MM + shift_mm + missing_mm))
    return below_mm, above_mm


def _draw_contrast(
    protocol: np.random.Generator, site: SiteProfile, scanner: Scanner
) -> Contrast | None:
    given, told = protocol.random(2)
    vessel_hu = float(protocol.uniform(*site.contrast_hu)) * iodine_factor(scanner.kvp)
    element: Told = ("agent", "series", "study")[int(protocol.integers(3))]
    if given >= site.contrast_fraction:
        return None
    return Contrast(vessel_hu, element if told < site.contrast_told_fraction else "")


def _rounded(value: float, step: float) -> float:
    return round(float(value) / step) * step


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _around(
    rng: np.random.Generator, mean: float, sd: float, interval: tuple[float, float] | None
) -> float:
    return float(rng.normal(mean, sd) if interval is None else rng.uniform(*interval))


def _draw_kernel(rng: np.random.Generator, site: SiteProfile, scanner: Scanner) -> float:
    width, chance = float(rng.uniform(*site.kernel_mm)), rng.random()
    if scanner.bone:
        return -max(width, 0.1)
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
