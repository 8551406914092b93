"""Metal in a head: fillings, aneurysm clips, coils; and the streaks that a scanner makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headct.phantom.canvas import Canvas
from headct.phantom.exact import arctan2, cos, exp
from headct.phantom.fields import Floats, Xyz, ellipsoid, occupancy, paint
from headct.phantom.site import SiteProfile

METAL_HU = 9000.0
"""Beyond what is stored: metal is cut off at the highest HU, as in scanners."""
RAYS = (1, 2, 5, 9, 14, 19, 26, 33)
"""Streaks around a piece of metal: waves of the angle with these numbers of periods."""
CORE_MM = 6.0
"""Streaks fall with 1 / (distance + this)."""
DEFINED_AT_MM = 10.0
"""Where their strength is that of the profile."""

ANEURYSMS: tuple[Xyz, ...] = (
    (11.0, 10.0, -17.0),
    (-11.0, 10.0, -17.0),
    (34.0, 6.0, -10.0),
    (-34.0, 6.0, -10.0),
    (0.0, 20.0, -13.0),
    (0.0, -2.0, -20.0),
)
"""Ends of the carotids, bifurcations of the middle cerebrals, anterior communicating, basilar."""


@dataclass(frozen=True)
class Implant:
    """A piece of metal: an ellipsoid of the head frame, mm."""

    kind: Literal["filling", "clip", "coil"]
    centre: Xyz
    radii: Xyz


@dataclass(frozen=True)
class Streak:
    """Streaks from a point.

    Attributes:
        centre: right, anterior, superior in mm, in the scanner's frame.
        half_mm: half height of the metal and half a slice.
        strength_hu: 10 mm away.
        phases: of RAYS.
    """

    centre: Xyz
    half_mm: float
    strength_hu: float
    phases: tuple[float, ...]


def draw_implants(rng: np.random.Generator, site: SiteProfile) -> tuple[Implant, ...]:
    """The metal that a patient of this hospital carries."""
    has_fillings, has_clip = rng.random(2) < (site.dental_fraction, site.clip_fraction)
    fillings = [_draw_filling(rng) for _ in range(int(rng.integers(1, 7)))]
    repaired = _draw_repair(rng)
    return (*(fillings if has_fillings else ()), *((repaired,) if has_clip else ()))


def _draw_filling(rng: np.random.Generator) -> Implant:
    angle, jaw = rng.uniform(-1.5, 1.5), rng.choice([-1, 1])
    x, y, z = 25 * np.sin(angle), 50 + 31 * np.cos(angle), -92 + 4 * jaw
    a, b, c = (float(v) for v in rng.uniform(1.5, 3.5, 3))
    return Implant("filling", (float(x), float(y), float(z)), (a, b, c))


def _draw_repair(rng: np.random.Generator) -> Implant:
    centre = ANEURYSMS[int(rng.integers(len(ANEURYSMS)))]
    size = float(rng.uniform(2.5, 5))
    if rng.random() < 0.5:
        return Implant("coil", centre, (size, size, size))
    return Implant("clip", centre, (1.2, 1.5 * size, 1.4))


def paint_implants(canvas: Canvas, implants: tuple[Implant, ...]) -> None:
    """Paint metal over what is there."""
    for implant in implants:
        part = canvas.within(implant.centre, implant.radii)
        if part is not None:
            near = ellipsoid(part.xb, part.yb, part.zb, implant.centre, implant.radii)
            paint(part.hu, occupancy(near, part.blur_mm), METAL_HU)


def add_streaks(
    hu: Floats,
    coordinates: tuple[Floats, Floats, Floats],
    tilt_deg: float,
    streaks: tuple[Streak, ...],
) -> None:
    """Streaks in the slices that hold metal, and dark bands between two pieces, in place.

    Args:
        hu: [z y x].
        coordinates: superior, anterior and right in mm of the scanner, broadcastable to `hu`.
        tilt_deg: of the gantry; streaks lie in its plane.
        streaks: from `render`.
    """
    superior, anterior, right = coordinates
    slope = np.float32(np.tan(np.deg2rad(tilt_deg)))
    level = superior - anterior * slope
    for number, streak in enumerate(streaks):
        away = level - np.float32(streak.centre[2] - streak.centre[1] * slope)
        weight = exp((away * np.float32(1 / streak.half_mm)) ** 2 * np.float32(-0.5))
        near = weight.reshape(weight.shape[0], -1).max(axis=1) > 0.02
        rows = np.flatnonzero(np.broadcast_to(near, hu.shape[:1]))
        if not rows.size:
            continue
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        a, r, w = (c[here] if c.shape[0] > 1 else c for c in (anterior, right, weight))
        hu[here] += w * _rays(a, r, streak)
        if number:
            hu[here] -= w * _shadow(a, r, streak, streaks[number - 1])


def _rays(anterior: Floats, right: Floats, streak: Streak) -> Floats:
    y, x = anterior - np.float32(streak.centre[1]), right - np.float32(streak.centre[0])
    angle = arctan2(y, x)
    waves = np.zeros((), np.float32)
    for periods, phase in zip(RAYS, streak.phases, strict=True):
        waves = waves + cos(angle * np.float32(periods) + np.float32(phase))
    waves = waves * np.float32((2 / len(RAYS)) ** 0.5)
    fall = np.float32(streak.strength_hu * (DEFINED_AT_MM + CORE_MM))
    rays: Floats = waves * fall / (np.sqrt(x * x + y * y) + np.float32(CORE_MM))
    return rays


def _shadow(anterior: Floats, right: Floats, one: Streak, other: Streak) -> Floats:
    """The dark band on the line between two pieces of metal."""
    (x0, y0, z0), (x1, y1, z1) = one.centre, other.centre
    length = float(np.hypot(x1 - x0, y1 - y0))
    if length < 1 or abs(z1 - z0) > one.half_mm + other.half_mm:
        return np.zeros((1, 1, 1), np.float32)
    ux, uy = np.float32((x1 - x0) / length), np.float32((y1 - y0) / length)
    y, x = anterior - np.float32(y0), right - np.float32(x0)
    along, across = x * ux + y * uy, y * ux - x * uy
    between = np.clip(np.minimum(along, np.float32(length) - along) * np.float32(0.2) + 1, 0, 1)
    band: Floats = exp((across * np.float32(1 / 4)) ** 2 * np.float32(-1)) * between
    return band * np.float32(1.2 * one.strength_hu)
