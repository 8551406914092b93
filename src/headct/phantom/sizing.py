"""Give a haemorrhage the extent that its volume asks for, in this patient's head.

How much blood fits within a radius depends on skull base, falx, sulci and ventricles. So a coarse
picture of the part in question is painted, without pose and scanner, and solved for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from headct.phantom.anatomy import VAULT_RADII_MM, Anatomy, Brain
from headct.phantom.brain import Compartments, paint_brain
from headct.phantom.canvas import Canvas
from headct.phantom.fields import NoiseLookup, Xyz, band_noise, occupancy
from headct.phantom.findings import (
    MAX_VENTRICLE,
    Bleed,
    Collection,
    Lesion,
    Subarachnoid,
    VentricularBlood,
)
from headct.phantom.head import AIR_HU, HeadMaps, paint_head
from headct.phantom.lesions import (
    REACH,
    collection_share,
    distance,
    near,
    subarachnoid_share,
    ventricular_share,
)

VAULT: tuple[Xyz, Xyz] = ((0.0, 0.0, 4.0), (69.0, 87.0, 68.0))
VENTRICLES: tuple[Xyz, Xyz] = ((0.0, -12.0, -3.0), (48.0, 60.0, 44.0))
FRONTAL_HORNS: tuple[Xyz, Xyz] = ((0.0, 20.0, 9.0), (50.0, 10.0, 2.0))
"""Boxes: centre and half widths."""
SMALL_MM = 24.0
"""Half width of the box in which a small subarachnoid bleed is sized."""
WHOLE_MM = 130.0
"""A radius in which all of the brain lies."""
N_SURFACE = 120
"""Points on the surface of a bleed."""
EVANS_STEP_MM = 1.25
FULL = 0.8
"""Ventricles with a larger share of blood are distended."""


@dataclass(frozen=True)
class Picture:
    """A coarse picture of a part of the head."""

    canvas: Canvas
    maps: HeadMaps
    voxel_ml: float

    @classmethod
    def of(cls, anatomy: Anatomy, centre: Xyz, half_mm: Xyz, step_mm: float) -> Picture:
        """Paint a box of the head frame, the intracranial space empty."""
        axes = [
            np.arange(c - h, c + h + step_mm / 2, step_mm, dtype=np.float32)
            for c, h in zip(centre, half_mm, strict=True)
        ]
        z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3)[::-1] / step_mm
        matrix[:3, 3] = [-float(axis[0]) / step_mm for axis in axes[::-1]]
        hu = np.full(x.shape, AIR_HU, np.float32)
        canvas = Canvas(hu, x, y, z, x, y, z, step_mm, matrix, 0.0)
        maps = paint_head(canvas, anatomy, [])
        return cls(canvas, maps, step_mm**3 * true_size(anatomy, centre, half_mm) / 1000)

    def brain(self, brain: Brain) -> Compartments:
        """Paint the brain."""
        return paint_brain(self.canvas, self.maps, brain)


def true_size(anatomy: Anatomy, centre: Xyz, half_mm: Xyz) -> float:
    """mm^3 in the person for each mm^3 in the head frame, on average over the middle of a box."""
    corners = np.array(np.meshgrid(*[(-0.4, 0.4)] * 3)).reshape(3, -1).T
    points = np.asarray(centre) + corners * np.asarray(half_mm)
    h = 1.0
    slopes = [
        (anatomy.deformation.at(points + step) - anatomy.deformation.at(points - step)) / (2 * h)
        for step in h * np.eye(3)
    ]
    stretch = np.linalg.det(np.eye(3) + np.stack(slopes, axis=-1))
    return float(np.prod(anatomy.scale) * np.mean(1 / stretch))


def sized(lesion: Lesion, anatomy: Anatomy, brain: Brain) -> Lesion:
    """The lesion with the extent of its `volume_ml`; what is no haemorrhage is returned as it is.

    Args:
        lesion: drawn, and aged.
        anatomy: the person.
        brain: theirs, with all diffuse findings.
    """
    match lesion:
        case Bleed():
            x, y, z = lesion.radii
            now_ml = (
                4 / 3 * np.pi * x * y * z * true_size(anatomy, lesion.centre, lesion.radii) / 1000
            )
            k = float(np.cbrt(lesion.volume_ml / now_ml))
            grown = replace(lesion, radii=(k * x, k * y, k * z))
            return replace(grown, bulge=_bulge(grown, anatomy))
        case Collection():
            return _sized_collection(lesion, anatomy)
        case Subarachnoid():
            return _sized_subarachnoid(lesion, anatomy, brain)
        case VentricularBlood():
            return _sized_ventricular(lesion, anatomy, brain)
    return lesion


def _bulge(lesion: Bleed, anatomy: Anatomy) -> float:
    """Mean of the noise of `lesions` that makes its surface irregular."""
    i = np.arange(N_SURFACE) + 0.5
    polar, turn = np.arccos(1 - 2 * i / N_SURFACE), np.pi * (1 + 5**0.5) * i
    ring = np.sin(polar)
    sphere = np.stack([ring * np.cos(turn), ring * np.sin(turn), np.cos(polar)])
    x, y, z = (np.asarray(lesion.centre)[:, None] + sphere * np.array([lesion.radii]).T).astype(
        np.float32
    )
    at = NoiseLookup(x, y, z, anatomy.brain.texture_at, linear=False)
    return float(at(band_noise("shape", 30.0)).mean())


def _sized_collection(lesion: Collection, anatomy: Anatomy) -> Collection:
    """Thickness grows with volume^0.4, radius with volume^0.3."""
    flat_ml = np.pi * lesion.radius_mm**2 * lesion.thickness_mm / 1000
    flat_ml *= lesion.exponent / (lesion.exponent + 2)
    lesion = _larger(lesion, lesion.volume_ml / flat_ml)
    half = 1.5 * lesion.radius_mm
    step = max(1.2, lesion.radius_mm / 9)
    picture = Picture.of(anatomy, lesion.centre, (half, half, half), step)
    for _ in range(4):
        share = collection_share(picture.canvas, -picture.maps.inside, lesion)
        ml = float(share.sum()) * picture.voxel_ml
        lesion = _larger(lesion, min(max(lesion.volume_ml / max(ml, 1e-3), 0.3), 3.0))
    return lesion


def _larger(lesion: Collection, k: float) -> Collection:
    return replace(
        lesion,
        thickness_mm=lesion.thickness_mm * float(k) ** 0.4,
        radius_mm=lesion.radius_mm * float(k) ** 0.3,
    )


def _sized_subarachnoid(lesion: Subarachnoid, anatomy: Anatomy, brain: Brain) -> Subarachnoid:
    half = (SMALL_MM, SMALL_MM, SMALL_MM)
    small = Picture.of(anatomy, lesion.centre, half, 2.0)
    found = _radius(small, lesion, brain, SMALL_MM / REACH)
    if found is None:
        found = _radius(Picture.of(anatomy, *VAULT, 3.3), lesion, brain, WHOLE_MM)
    return replace(lesion, radius_mm=found or WHOLE_MM)


def _radius(
    picture: Picture, lesion: Subarachnoid, brain: Brain, largest_mm: float
) -> float | None:
    """Radius at which the bleed has its volume; None where the largest is too small."""
    canvas, parts = picture.canvas, picture.brain(brain)
    away = distance(canvas.x, canvas.y, canvas.z, lesion.centre)
    share = subarachnoid_share(picture.maps, parts, (slice(None),) * 3, lesion, canvas.blur_mm)
    found = share > 0.01
    share, away = share[found], away[found]

    def ml(radius: float) -> float:
        return float((share * near(away, radius)).sum()) * picture.voxel_ml

    if ml(largest_mm) < lesion.volume_ml:
        return None
    return _solved(ml, lesion.volume_ml, 1.0, largest_mm)


def _sized_ventricular(
    lesion: VentricularBlood, anatomy: Anatomy, brain: Brain
) -> VentricularBlood:
    picture = Picture.of(anatomy, *VENTRICLES, 3.0)
    lesion = replace(lesion, ventricle=1.0)
    for _ in range(3):
        ventricle = picture.brain(lesion.applied(brain)).ventricle
        share = ventricular_share(picture.canvas, ventricle, lesion)
        ratio = lesion.volume_ml / (FULL * max(float(share.sum()) * picture.voxel_ml, 1e-3))
        if ratio <= 1 or lesion.ventricle * brain.ventricle >= MAX_VENTRICLE:
            break
        lesion = replace(lesion, ventricle=lesion.ventricle * ratio**0.5)
    y, step = picture.canvas.y, picture.canvas.blur_mm

    def ml(level: float) -> float:
        return float((share * occupancy(y - np.float32(level), step)).sum()) * picture.voxel_ml

    return replace(lesion, level_mm=_solved(ml, lesion.volume_ml, -75.0, 50.0))


def _solved(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a rising function has a value, by bisection."""
    for _ in range(14):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return 0.5 * (low + high)


def evans_index(anatomy: Anatomy, brain: Brain) -> float:
    """Greatest width of the frontal horns over that of the inner skull; mass effect is left out."""
    picture = Picture.of(anatomy, *FRONTAL_HORNS, EVANS_STEP_MM)
    profile = picture.brain(brain).ventricle.max(axis=(0, 1))
    columns = np.flatnonzero(profile > 0)
    if not len(columns):
        return 0.0
    profile[columns[0] + 2 : columns[-1] - 1] = 1  # what is between the horns counts, too
    return float(profile.sum()) * EVANS_STEP_MM / (2 * VAULT_RADII_MM[0])
