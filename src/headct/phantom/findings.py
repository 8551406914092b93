"""What is wrong with a patient: lesions drawn with size, place, HU and their mass effect.

Source:
    RECIPE C2. Side is the patient's: x > 0 is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headct.phantom.anatomy import Brain
from headct.phantom.fields import Xyz
from headct.phantom.profile import DrawnFinding

Side = Literal["left", "right", "both", "midline"]

MAX_SEVERITY = 1.2
MAX_VENTRICLE = 2.6
"""Ventricles do not grow beyond this size, 1 in the young."""
LARGE_MM = 22.0
"""A round lesion of this radius pushes in full."""
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
    """What all findings have in common.

    Attributes:
        hu: of the lesion.
        stage: how old it looks, where that has a name.
        age_days: time since it came about.
        volume_ml: of haemorrhages; their extent follows from it, see `sizing.sized`.
    """

    finding: DrawnFinding
    side: Side
    location: str
    severity: float
    hu: float
    stage: str = field(default="", kw_only=True)
    age_days: float = field(default=0.0, kw_only=True)
    volume_ml: float = field(default=0.0, kw_only=True)

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """How the brain is displaced."""
        return ()

    def applied(self, brain: Brain) -> Brain:
        """The brain with the change that this finding makes to the whole of it."""
        return brain


@dataclass(frozen=True)
class Collection(Lesion):
    """Blood between skull and brain: depth < thickness (1 - (rho / radius)^exponent).

    Attributes:
        centre: point of the inner table; rho is the distance from it.
        swirl_hu: HU of unclotted blood inside, 0 where there is none.
        serum_hu: HU of the fluid above the level to which cells have sunk, 0 where there is none.
        level_mm: height of that level along y, in a patient who lies on the back.
    """

    centre: Xyz
    thickness_mm: float
    radius_mm: float
    exponent: int
    swirl_hu: float = 0.0
    serum_hu: float = 0.0
    level_mm: float = 0.0

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """A collection pushes by about its thickness, as far as it is wide; swelling adds to it."""
        push = (0.9 if self.finding == "edh" else 1.35) * self.thickness_mm
        return (MassEffect(self.centre, push, 18.0 + 1.1 * self.radius_mm),)


@dataclass(frozen=True)
class Subarachnoid(Lesion):
    """Blood in the CSF spaces around a point; `patchy` where it has left some of them free."""

    centre: Xyz
    radius_mm: float
    patchy: bool


@dataclass(frozen=True)
class Bleed(Lesion):
    """Blood in the brain: an ellipsoid with a rough surface and a rim of oedema.

    Attributes:
        radii: half axes in mm, to which `sizing.sized` gives the size that the volume asks for.
        bulge: mean over its surface of the noise that makes it irregular; taken off again.
    """

    centre: Xyz
    radii: Xyz
    rim_mm: float
    rim_hu: float
    bulge: float = 0.0

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """Displacement near and far grows with the mean radius."""
        radius = float(np.mean(self.radii))
        push = 0.6 * radius * min(1.0, radius / LARGE_MM)
        return (MassEffect(self.centre, push, 10 + 1.3 * radius),)


@dataclass(frozen=True)
class VentricularBlood(Lesion):
    """Blood in the dependent part of the ventricles of a patient who lies on the back.

    Attributes:
        ventricle: factor by which the blood distends them.
    """

    level_mm: float
    ventricle: float = 1.0

    def applied(self, brain: Brain) -> Brain:
        """The brain with distended ventricles."""
        return replace(brain, ventricle=min(brain.ventricle * self.ventricle, MAX_VENTRICLE))


@dataclass(frozen=True)
class Infarct(Lesion):
    """A territory that has lost its grey-white contrast.

    Attributes:
        share: of the way to its HU.
        swelling: 1 at its height; below 0 where an old one has shrunk.
    """

    centre: Xyz
    radii: Xyz
    share: float
    swelling: float

    def mass_effect(self) -> tuple[MassEffect, ...]:
        """Swelling pushes; what an old infarct has lost pulls."""
        push = 0.12 * self.swelling * float(np.mean(self.radii))
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
        radius = float(np.mean(self.radii))
        push = 0.5 * radius * min(1.0, radius / LARGE_MM) + 0.13 * self.oedema_mm
        return (MassEffect(self.centre, push, 10 + 1.3 * radius + 0.7 * self.oedema_mm),)


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
    temporal_horn: float = 1.0
    sulcus: float = 1.0
    gap_mm: float = 0.0
    contrast: float = 1.0
    white_hu: float = 0.0
    periventricular_hu: float = 0.0

    def applied(self, brain: Brain) -> Brain:
        """The brain with this change."""
        grey = brain.white_hu + (brain.grey_hu - brain.white_hu) * self.contrast
        return replace(
            brain,
            ventricle=min(brain.ventricle * self.ventricle, MAX_VENTRICLE),
            temporal_horn=brain.temporal_horn * self.temporal_horn,
            third=brain.third * max(0.5, 1 + 0.5 * (self.ventricle - 1)),
            sulcus=brain.sulcus * self.sulcus,
            gap=max(0.2, brain.gap * min(1.0, self.sulcus + 0.2) + self.gap_mm),
            cistern=brain.cistern - max(0.0, 2 * (1 - self.sulcus)) + 0.4 * self.gap_mm,
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
