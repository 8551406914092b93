"""One person's head: the numbers that make it individual, drawn from a patient's seed.

Head frame in mm: x to the right, y anterior, z superior, origin at the centre of the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headct.phantom.exact import power
from headct.phantom.fields import Floats, Xyz
from headct.phantom.profile import PhantomPreset
from headct.phantom.vessels import Arteries, draw_arteries

VAULT_RADII_MM: Xyz = (67.0, 85.0, 70.0)
"""Half widths of the intracranial space. Source: RECIPE C1."""
AGE_YEARS = (58.0, 19.0, 18.0, 95.0)
"""Of patients: mean, sd, lowest and highest."""
BLUNT = 2.3
"""Power of y in the vault's equation: above 2 the forehead is blunter than an ellipsoid's."""


@dataclass(frozen=True)
class Calcification:
    """A benign calcification; the built-in confounder for haemorrhage."""

    centre: Xyz
    radii: Xyz
    hu: float


@dataclass(frozen=True)
class Skull:
    """Bone and what is outside it; lengths in mm.

    Attributes:
        frontal: parietal: temporal: occipital: thickness; hyperostosis adds to it in the forehead.
        scalp: thickness of skin and fat.
        swelling: benign scalp swelling: centre and height, if any.
        table_hu: diploe_hu: the compact and the spongy layer.
        frontal_sinus: 0 where absent, else its size, 1 on average; so are the others.
    """

    frontal: float
    parietal: float
    temporal: float
    occipital: float
    hyperostosis: float
    scalp: float
    swelling: tuple[Xyz, float] | None
    table_hu: float
    diploe_hu: float
    fat_hu: float
    muscle_hu: float
    face: float
    nose: float
    ears: float
    frontal_sinus: float
    maxillary_sinus: float
    sphenoid_sinus: float
    mastoid_cells: float
    sinus_fluid: tuple[bool, bool]
    teeth: bool


@dataclass(frozen=True)
class Brain:
    """Brain and CSF; lengths in mm, tissues in HU.

    Attributes:
        cysts: arachnoid cysts and wide cisterns, a benign excess of CSF: centre and radii.
        sulcus: half width of a sulcus at the surface.
        gap: width of the subarachnoid space.
        cistern: how much wider cisterns and Sylvian fissures are than on average.
        ventricle: size of the ventricles, 1 in the young.
        temporal_horn: of the temporal horns in addition, wide where the hippocampus is small.
        ribbon: thickness of the cortex.
        sinus_hu: blood in the venous sinuses, as dense as the haematocrit asks.
        choroid_hu: the choroid plexus in the trigones.
        fresh_blood_hu: shift of all fresh blood in this patient (haematocrit).
    """

    sulcus: float
    gap: float
    cistern: float
    ventricle: float
    temporal_horn: float
    third: float
    ribbon: float
    white_hu: float
    grey_hu: float
    csf_hu: float
    falx_hu: float
    sinus_hu: float
    fresh_blood_hu: float
    sulci_at: Xyz
    texture_at: Xyz
    calcifications: tuple[Calcification, ...]
    arteries: Arteries
    choroid_hu: float
    cysts: tuple[tuple[Xyz, Xyz], ...] = ()
    periventricular_hu: float = 0.0


@dataclass(frozen=True)
class Deformation:
    """A smooth displacement of the whole head: a sum of plane waves.

    Attributes:
        waves_per_mm: [n 3], wave vectors.
        amplitudes_mm: [n 3].
        phases: [n].
    """

    waves_per_mm: NDArray[np.float64]
    amplitudes_mm: NDArray[np.float64]
    phases: NDArray[np.float64]

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement in mm at points [n 3]."""
        return np.sin(points @ self.waves_per_mm.T + self.phases) @ self.amplitudes_mm


@dataclass(frozen=True)
class Anatomy:
    """One person's head without findings."""

    age_years: int
    sex: Literal["F", "M"]
    scale: Xyz
    deformation: Deformation
    skull: Skull
    brain: Brain


def draw_anatomy(rng: np.random.Generator, preset: PhantomPreset) -> Anatomy:
    """Draw a person: size, shape, age, bone, sinuses, tissues, calcifications."""
    age = int(np.clip(rng.normal(*AGE_YEARS[:2]), *AGE_YEARS[2:]))
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    size = 0.985 if sex == "F" else 1.015
    scale = np.clip(size * rng.normal(1, preset.scale_sd, 3), 0.88, 1.12)
    return Anatomy(
        age_years=age,
        sex=sex,
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        deformation=_draw_deformation(rng, preset.deformation_mm),
        skull=_draw_skull(rng, preset.hu_variation),
        brain=_draw_brain(rng, age, preset.hu_variation),
    )


def vault_distance(x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Distance to the ellipsoid of the vault, and the squared shares of x, y and z in it.

    The shares add up to the squared radius in units of the vault's; they say which bone is near.
    """
    a, b, c = VAULT_RADII_MM
    narrow = np.float32(1) / (np.float32(a) - y * np.float32(0.09 * a / 86))
    sx = x * narrow
    sx *= sx
    sy = power(np.abs(y) * np.float32(1 / b), BLUNT)
    sz = z * np.float32(1 / c)
    sz *= sz
    inner = sx + sy + sz
    norm = np.sqrt(inner)
    slope = np.sqrt(
        sx * np.float32(a**-2) + sy * np.float32(b**-2) + sz * np.float32(c**-2) + np.float32(1e-12)
    )
    return (inner - norm) / slope, sx, sy, sz


def vault_point(direction: Xyz) -> Xyz:
    """The point of the inner table in a direction from the brain's centre."""
    x, y, z = np.asarray(direction, float) / np.linalg.norm(direction)
    a, b, c = VAULT_RADII_MM
    low, high = 40.0, 110.0
    for _ in range(30):
        r = 0.5 * (low + high)
        narrow = a * (1 - 0.09 * r * y / 86)
        outside = (r * x / narrow) ** 2 + abs(r * y / b) ** BLUNT + (r * z / c) ** 2 > 1
        low, high = (low, r) if outside else (r, high)
    return float(low * x), float(low * y), float(low * z)


def _draw_deformation(rng: np.random.Generator, sd_mm: float) -> Deformation:
    n = 18
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength = rng.uniform(90, 180, (n, 1))
    amplitudes = rng.standard_normal((n, 3)) * sd_mm * np.sqrt(2 / n)
    return Deformation(direction * 2 * np.pi / wavelength, amplitudes, rng.uniform(0, 2 * np.pi, n))


def _clipped(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, sd), low, high))


def _draw_skull(rng: np.random.Generator, variation: float) -> Skull:
    swollen = rng.random() < 0.08
    place = vault_point((rng.choice([-1, 1]), rng.uniform(-0.9, 0.9), rng.uniform(0, 0.9)))
    table = _clipped(rng, 1350, 220 * variation, 900, 1800)
    return Skull(
        frontal=_clipped(rng, 8, 1.6, 4.5, 13),
        parietal=_clipped(rng, 7, 1.2, 4, 11),
        temporal=_clipped(rng, 4.7, 1.0, 2.5, 8),
        occipital=_clipped(rng, 8, 1.8, 4.5, 13),
        hyperostosis=float(rng.uniform(2, 5)) if rng.random() < 0.1 else 0.0,
        scalp=float(rng.uniform(4, 8)),
        swelling=(place, float(rng.uniform(3, 8))) if swollen else None,
        table_hu=table,
        diploe_hu=float(rng.uniform(300, 700)),
        fat_hu=float(rng.uniform(-115, -75)),
        muscle_hu=float(rng.uniform(45, 62)),
        face=_clipped(rng, 1, 0.04, 0.9, 1.1),
        nose=_clipped(rng, 1, 0.12, 0.75, 1.3),
        ears=_clipped(rng, 1, 0.1, 0.8, 1.25),
        frontal_sinus=0.0 if rng.random() < 0.15 else _clipped(rng, 1, 0.25, 0.5, 1.6),
        maxillary_sinus=_clipped(rng, 1, 0.1, 0.75, 1.2),
        sphenoid_sinus=_clipped(rng, 1, 0.15, 0.6, 1.3),
        mastoid_cells=_clipped(rng, 1, 0.2, 0.4, 1.3),
        sinus_fluid=(bool(rng.random() < 0.07), bool(rng.random() < 0.07)),
        teeth=bool(rng.random() < 0.85),
    )


def _draw_brain(rng: np.random.Generator, age: int, variation: float) -> Brain:
    ageing = max(0.0, (age - 40) / 50)
    white = _clipped(rng, 28, 2.4 * variation, 23.2, 34)
    haematocrit = float(rng.normal(0, 4.5 * variation))
    return Brain(
        sulcus=float(rng.uniform(0.1, 1.05) + 0.4 * ageing),
        gap=float(rng.uniform(0.2, 2.6) + 1.0 * ageing),
        cistern=float(rng.uniform(-1.2, 0.9) + 0.5 * ageing),
        ventricle=float(_clipped(rng, 1.0, 0.22, 0.78, 1.55) + 0.2 * ageing),
        temporal_horn=float(rng.uniform(0.7, 1.2)),
        third=float(rng.uniform(3.0, 4.8) + 1.1 * ageing),
        ribbon=float(rng.uniform(2.6, 4.2)),
        white_hu=white,
        grey_hu=white + float(rng.uniform(7, 11)),
        csf_hu=float(rng.uniform(2, 11)),
        falx_hu=float(rng.uniform(50, 66)),
        sinus_hu=float(np.clip(56 + haematocrit + rng.normal(0, 2), 42, 70)),
        fresh_blood_hu=haematocrit,
        sulci_at=_anywhere(rng),
        texture_at=_anywhere(rng),
        calcifications=tuple(_draw_calcifications(rng)),
        cysts=tuple(_draw_cysts(rng)),
        periventricular_hu=-float(rng.uniform(0, 5) * ageing),
        arteries=draw_arteries(rng, age, haematocrit),
        choroid_hu=float(rng.uniform(34, 46)),
    )


def _anywhere(rng: np.random.Generator) -> Xyz:
    x, y, z = rng.uniform(0, 160, 3)
    return float(x), float(y), float(z)


def _draw_cysts(rng: np.random.Generator) -> list[tuple[Xyz, Xyz]]:
    found: list[tuple[Xyz, Xyz]] = []
    if rng.random() < 0.2:
        a, b = float(rng.uniform(16, 30)), float(rng.uniform(10, 18))
        found.append(((0.0, -68.0, -50.0), (a, b, b)))
    if rng.random() < 0.12:
        side = float(rng.choice([-1, 1]))
        a, b, c = (float(v) for v in rng.uniform(9, 19, 3))
        found.append(((side * 50.0, 22.0, -22.0), (a, b, c)))
    if rng.random() < 0.06:
        side, a, c = float(rng.choice([-1, 1])), *(float(v) for v in rng.uniform(8, 15, 2))
        x, y, z = vault_point((0.6 * side, float(rng.uniform(-0.3, 0.8)), 0.8))
        found.append(((x, y, z), (2 * a, 2 * a, c)))
    return found


def _draw_calcifications(rng: np.random.Generator) -> list[Calcification]:
    found = []
    if rng.random() < 0.6:
        r = float(rng.uniform(1.6, 3.2))
        found.append(Calcification((0.0, -27.0, 3.0), (r, r, r), float(rng.uniform(120, 350))))
    if rng.random() < 0.5:
        hu = float(rng.uniform(100, 300))
        for side in (-1, 1):
            r = float(rng.uniform(1.8, 3.2))
            found.append(Calcification((side * 19.0, -36.0, 9.0), (r, r * 1.3, r), hu))
    if rng.random() < 0.12:
        hu = float(rng.uniform(70, 200))
        for side in (-1, 1):
            r = float(rng.uniform(2, 4.5))
            found.append(Calcification((side * 20.0, 8.0, 3.0), (r * 0.7, r, r), hu))
    if rng.random() < 0.1:
        at = float(rng.uniform(-20, 60))
        up = 62 * float(np.sqrt(1 - (at / 85) ** 2))
        hu = float(rng.uniform(120, 400))
        found.append(Calcification((0.0, at, up - 14), (2.0, 6.0, 5.0), hu))
    return found
