"""Arteries at the base of the brain: carotid, basilar, vertebral, middle, anterior and posterior.

Blood in them is 35-50 HU, with the patient's haematocrit. Two mimics of disease belong to the
normal head: a dense middle cerebral artery on one side, and calcified walls in the old.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.phantom.canvas import Canvas
from headct.phantom.fields import Floats, Xyz, capsule, occupancy, paint

PAIRED: tuple[tuple[Xyz, Xyz, float], ...] = (
    ((11.0, 9.0, -40.0), (12.0, 14.0, -27.0), 2.3),  # carotid siphon
    ((12.0, 14.0, -27.0), (10.5, 10.0, -17.0), 2.0),
    ((10.5, 10.0, -17.0), (22.0, 9.0, -14.0), 1.5),  # middle cerebral, M1
    ((22.0, 9.0, -14.0), (34.0, 5.0, -10.0), 1.4),
    ((34.0, 5.0, -10.0), (41.0, -4.0, -1.0), 1.0),  # in the insula, M2
    ((10.5, 10.0, -17.0), (1.6, 19.0, -13.0), 1.1),  # anterior cerebral, A1
    ((1.6, 19.0, -13.0), (1.4, 35.0, 3.0), 1.0),
    ((1.0, -2.0, -21.0), (15.0, -11.0, -18.0), 1.1),  # posterior cerebral
    ((9.0, -13.0, -62.0), (0.5, -3.0, -46.0), 1.6),  # vertebral
)
"""From, to and radius in mm, x away from the middle; both sides have them."""
BASILAR: tuple[Xyz, Xyz, float] = ((0.0, -3.0, -46.0), (0.0, -2.0, -21.0), 1.7)
M1 = (2, 3)
"""Places of the middle cerebral artery's stem in PAIRED."""
SIPHON = 0


@dataclass(frozen=True)
class Arteries:
    """One person's arteries.

    Attributes:
        hu: of blood.
        calibre: factor on all radii; wide and winding in the old.
        dense_side: -1 left, 1 right: the side whose middle cerebral artery is dense; 0 neither.
        dense_hu: its HU, 0 where there is none.
        plaque_hu: of calcified walls of the siphons, 0 where there are none.
    """

    hu: float
    calibre: float
    dense_side: int
    dense_hu: float
    plaque_hu: float


def draw_arteries(rng: np.random.Generator, age: int, haematocrit_hu: float) -> Arteries:
    """A person's arteries; `haematocrit_hu` shifts the HU of all blood."""
    hu = float(np.clip(41 + 0.8 * haematocrit_hu + rng.normal(0, 1.2), 33, 52))
    dense, side = rng.random() < 0.06, int(rng.choice([-1, 1]))
    dense_hu = hu + float(rng.uniform(12, 22))
    old = float(np.clip((age - 45) / 40, 0, 1))
    calcified, plaque_hu = rng.random() < 0.75 * old, float(rng.uniform(150, 600))
    return Arteries(
        hu=hu,
        calibre=float(np.clip(rng.normal(1 + 0.2 * old, 0.12), 0.75, 1.6)),
        dense_side=side if dense else 0,
        dense_hu=dense_hu if dense else 0.0,
        plaque_hu=plaque_hu if calcified else 0.0,
    )


def paint_arteries(canvas: Canvas, arteries: Arteries) -> None:
    """Paint them where brain, cisterns and skull base have been painted."""
    part = canvas.within((0.0, 8.0, -30.0), (45.0, 30.0, 36.0))
    if part is None:
        return
    ax = np.abs(part.xb)
    blood = np.full(part.hu.shape, np.float32(9))
    for a, b, radius in (*PAIRED, BASILAR):
        _join(blood, part, ax, (a, b, radius * arteries.calibre))
    paint(part.hu, occupancy(blood, part.blur_mm), arteries.hu)
    if arteries.dense_hu:
        dense = np.full(part.hu.shape, np.float32(9))
        for place in M1:
            a, b, radius = PAIRED[place]
            _join(dense, part, part.xb * arteries.dense_side, (a, b, radius * arteries.calibre))
        paint(part.hu, occupancy(dense, part.blur_mm), arteries.dense_hu)
    if arteries.plaque_hu:
        a, b, radius = PAIRED[SIPHON]
        wall = np.full(part.hu.shape, np.float32(9))
        _join(wall, part, ax, (a, b, radius * arteries.calibre))
        wall = np.maximum(np.abs(wall) - 0.6, part.yb - 12)
        paint(part.hu, occupancy(wall, part.blur_mm), arteries.plaque_hu)


def _join(distance: Floats, part: Canvas, x: Floats, tube: tuple[Xyz, Xyz, float]) -> None:
    """Distance to the nearest tube so far and to one more; `x` is folded or mirrored."""
    a, b, radius = tube
    middle, half = np.add(a, b) / 2, np.abs(np.subtract(a, b)) / 2 + radius
    box = part.box((0.0, middle[1], middle[2]), (middle[0] + half[0], half[1], half[2]))
    if box is not None:
        near = capsule(x[box], part.yb[box], part.zb[box], a, b, radius)
        distance[box] = np.minimum(distance[box], near)
