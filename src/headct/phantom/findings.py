"""What is wrong with a patient: lesions drawn with size, place, HU and their mass effect.

Source:
    RECIPE C2. Side is the patient's: x > 0 is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headct.errors import UsageError
from headct.phantom.anatomy import Brain
from headct.phantom.fields import Xyz
from headct.phantom.profile import DRAWN_FINDINGS, DrawnFinding, PhantomPreset

Side = Literal["left", "right", "both", "midline"]

MAX_SEVERITY = 1.2
MAX_VENTRICLE = 2.6
"""Ventricles do not grow beyond this size, 1 in the young."""
SEPTUM: Xyz = (0.0, 8.0, 10.0)
"""Where midline shift is measured."""


@dataclass(frozen=True)
class MassEffect:
    """Brain pushed away from a point by `push_mm` there, less with distance (sd `reach_mm`)."""

    centre: Xyz
    push_mm: float
    reach_mm: float


@dataclass(frozen=True)
class Lesion:
    """What all findings have in common; `hu` is that of the lesion, or of nothing (nan-free 0)."""

    finding: DrawnFinding
    side: Side
    location: str
    severity: float
    hu: float

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """How the brain is displaced."""
        return ()


@dataclass(frozen=True)
class Collection(Lesion):
    """Blood between skull and brain: depth < thickness (1 - (rho / radius)^exponent).

    Attributes:
        centre: point of the inner table; rho is the distance from it.
        swirl_hu: HU of unclotted blood inside, 0 where there is none.
    """

    centre: Xyz
    thickness_mm: float
    radius_mm: float
    exponent: int
    swirl_hu: float

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """A collection pushes the brain away from the skull by most of its thickness."""
        reach = 55.0 if self.finding == "edh" else 62.0
        return (MassEffect(self.centre, 0.85 * self.thickness_mm, reach),)


@dataclass(frozen=True)
class Subarachnoid(Lesion):
    """Blood in the CSF spaces around a point; `mix` is its share of them."""

    centre: Xyz
    radius_mm: float
    mix: float


@dataclass(frozen=True)
class Bleed(Lesion):
    """Blood in the brain: an ellipsoid with a rough surface and a rim of oedema."""

    centre: Xyz
    radii: Xyz
    rim_mm: float
    rim_hu: float

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """Displacement grows with the mean radius."""
        return (MassEffect(self.centre, 0.45 * float(np.mean(self.radii)), 45.0),)


@dataclass(frozen=True)
class VentricularBlood(Lesion):
    """Blood in the dependent part of the ventricles of a patient who lies on the back."""

    level_mm: float


@dataclass(frozen=True)
class Infarct(Lesion):
    """A territory that has lost its grey-white contrast; `share` of the way to its HU."""

    centre: Xyz
    radii: Xyz
    share: float
    stage: Literal["acute", "subacute", "chronic"]

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """Swelling, except in old infarcts."""
        push = 0.0 if self.stage == "chronic" else 0.12 * float(np.mean(self.radii))
        return (MassEffect(self.centre, push, 40.0),) if push else ()


@dataclass(frozen=True)
class Mass(Lesion):
    """A tumour, with a necrotic core in half of them, and oedema of the white matter."""

    centre: Xyz
    radii: Xyz
    core_share: float
    core_hu: float
    oedema_mm: float
    oedema_hu: float

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """Tumour and oedema push."""
        push = 0.4 * float(np.mean(self.radii)) + 0.1 * self.oedema_mm
        return (MassEffect(self.centre, push, 48.0),)


@dataclass(frozen=True)
class Fracture(Lesion):
    """A cleft in the vault: a plane through `centre`, cut to `length_mm`; with scalp swelling."""

    centre: Xyz
    normal: Xyz
    width_mm: float
    length_mm: float
    swelling_mm: float


@dataclass(frozen=True)
class Diffuse(Lesion):
    """A change of the whole brain: factors on ventricles, sulci and grey-white contrast."""

    ventricle: float = 1.0
    sulcus: float = 1.0
    gap_mm: float = 0.0
    contrast_hu: float | None = None
    white_hu: float = 0.0
    periventricular_hu: float = 0.0

    def applied(self, brain: Brain) -> Brain:
        """The brain with this change."""
        grey = brain.grey_hu if self.contrast_hu is None else brain.white_hu + self.contrast_hu
        return replace(
            brain,
            ventricle=min(brain.ventricle * self.ventricle, MAX_VENTRICLE),
            third=brain.third * max(0.5, 1 + 0.5 * (self.ventricle - 1)),
            sulcus=brain.sulcus * self.sulcus,
            gap=max(0.2, brain.gap * min(1.0, self.sulcus + 0.2) + self.gap_mm),
            white_hu=brain.white_hu + self.white_hu,
            grey_hu=grey + self.white_hu,
            periventricular_hu=brain.periventricular_hu + self.periventricular_hu,
        )


def displacement(
    effects: tuple[MassEffect, ...], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where the brain at points [n 3] has come from, minus the points: mm, [n 3]."""
    moved = np.zeros_like(points)
    for effect in effects:
        away = points - np.asarray(effect.centre)
        distance2 = (away**2).sum(axis=1, keepdims=True)
        size = effect.push_mm * np.exp(-distance2 / (2 * effect.reach_mm**2))
        moved -= away * size / (np.sqrt(distance2) + 4)
    return moved


def midline_shift_mm(effects: tuple[MassEffect, ...]) -> float:
    """Shift of the septum in mm, positive to the patient's right."""
    start = np.array([SEPTUM])
    place = start
    for _ in range(12):
        place = start - displacement(effects, place)
    return float(place[0, 0])


CAUSES: dict[DrawnFinding, dict[DrawnFinding, float]] = {
    "ivh": {"iph": 0.3, "sah": 0.15},
    "hydrocephalus": {"ivh": 0.25, "sah": 0.12},
    "fracture": {"edh": 0.5, "sdh": 0.08},
    "sah": {"sdh": 0.1},
    "sdh": {"atrophy": 0.12},
}
"""Finding -> cause -> chance that the cause brings it."""

EXCLUDES: dict[DrawnFinding, tuple[DrawnFinding, ...]] = {
    "oedema": ("atrophy", "hydrocephalus"),
}
"""A swollen brain has neither wide ventricles nor wide sulci."""

_ORDER: tuple[DrawnFinding, ...] = (
    "atrophy",
    "edh",
    "iph",
    "sdh",
    "sah",
    "ivh",
    "hydrocephalus",
    "infarct",
    "mass",
    "fracture",
    "oedema",
)


def draw_presence(rng: np.random.Generator, preset: PhantomPreset) -> tuple[DrawnFinding, ...]:
    """Which findings a patient has: causes bring consequences, shares are as the preset says."""
    prevalence = preset.prevalence.model_dump()
    present: set[DrawnFinding] = set()
    for finding in _ORDER:
        causes = CAUSES.get(finding, {})
        absent = np.prod([1 - prevalence[cause] * chance for cause, chance in causes.items()])
        alone = max(0.0, 1 - (1 - prevalence[finding]) / float(absent))
        excluded = EXCLUDES.get(finding, ())
        possible = float(np.prod([1 - prevalence[other] for other in excluded]))
        drawn = rng.random() < min(1.0, alone / max(possible, 1e-9))
        brought = [rng.random() < chance for cause, chance in causes.items() if cause in present]
        if (drawn or any(brought)) and not present.intersection(excluded):
            present.add(finding)
    return tuple(f for f in DRAWN_FINDINGS if f in present)


def require_findings(wanted: Mapping[str, bool | float]) -> tuple[DrawnFinding, ...]:
    """The findings asked for.

    Raises:
        UsageError: one is unknown, or is midline shift, which only follows from others.
    """
    for name in wanted:
        if name not in DRAWN_FINDINGS:
            raise UsageError(
                f"no finding {name!r} can be planted", remedy=f"one of: {', '.join(DRAWN_FINDINGS)}"
            )
    return tuple(f for f in DRAWN_FINDINGS if wanted.get(f))
