"""Paint what is outside the brain: scalp, skull, face, sinuses, eyes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.phantom.anatomy import Anatomy, Skull, vault_distance
from headct.phantom.canvas import Box, Canvas
from headct.phantom.exact import exp
from headct.phantom.fields import (
    LINEAR_BELOW_MM,
    Floats,
    NoiseLookup,
    Xyz,
    band_noise,
    capsule,
    ellipsoid,
    occupancy,
    paint,
    smooth_min,
    smooth_step,
)

AIR_HU = -1000.0
SKIN_MM = 2.0


@dataclass(frozen=True)
class HeadMaps:
    """Distances in mm that later layers need, [z y x].

    Attributes:
        surface: to the skin; negative in the head.
        inside: to the inner table and the skull base; negative in the intracranial space.
        skull: to the outer table; bone is where `skull` < 0 < `inside`.
        texture: noise of about 7 mm, sd 1.
        shape: noise of about 30 mm, sd 1.
    """

    surface: Floats
    inside: Floats
    skull: Floats
    texture: Floats
    shape: Floats

    def part(self, box: Box) -> HeadMaps:
        """The maps of a part of the canvas, as views."""
        return HeadMaps(
            self.surface[box], self.inside[box], self.skull[box], self.texture[box], self.shape[box]
        )


def paint_head(canvas: Canvas, anatomy: Anatomy, swellings: list[tuple[Xyz, float]]) -> HeadMaps:
    """Paint a head with an empty intracranial space on a canvas of air.

    Args:
        canvas: filled with air.
        anatomy: the person.
        swellings: scalp swellings, centre and height in mm.
    """
    skull, x, y, z = anatomy.skull, canvas.x, canvas.y, canvas.z
    at = NoiseLookup(x, y, z, anatomy.brain.texture_at, linear=canvas.blur_mm < LINEAR_BELOW_MM)
    texture, shape = at(band_noise("texture", 7.0)), at(band_noise("shape", 30.0))
    vault, sx, sy, sz = vault_distance(x, y, z)
    thickness = _thickness(skull, y, sx, sy, sz) + shape * np.float32(0.6)
    if skull.hyperostosis:
        vault = vault + _hyperostosis(canvas, skull.hyperostosis) * (1 + 0.3 * texture)
    floor = _skull_base(x, y) - z
    inside = np.maximum(vault, floor)
    _carve_base(canvas, inside, texture)
    outer = vault - thickness
    plate = floor - np.float32(4)
    bone = np.maximum(outer, plate)
    surface = _paint_soft_tissue(canvas, skull, outer, swellings, texture)
    _paint_vault(canvas, skull, bone, inside, thickness, texture)
    _paint_base(canvas, skull, texture)
    _paint_face(canvas, skull, texture)
    return HeadMaps(surface, inside, bone, texture, shape)


def _thickness(skull: Skull, y: Floats, sx: Floats, sy: Floats, sz: Floats) -> Floats:
    front = np.where(y > 0, np.float32(skull.frontal), np.float32(skull.occipital))
    weighted = sx * np.float32(skull.temporal) + sz * np.float32(skull.parietal) + sy * front
    thickness: Floats = weighted / (sx + sy + sz + np.float32(1e-3))
    return thickness


def _hyperostosis(canvas: Canvas, height_mm: float) -> Floats:
    side = np.abs(canvas.x) - np.float32(24)
    distance2 = side**2 + (canvas.y - np.float32(72)) ** 2 + (canvas.z - np.float32(18)) ** 2
    height: Floats = np.float32(height_mm) * exp(distance2 * np.float32(-1 / (2 * 18**2)))
    return height


def _skull_base(x: Floats, y: Floats) -> Floats:
    """Height of the floor of the three cranial fossae: three steps, with the sella between."""
    side = np.minimum(np.abs(x), np.float32(55))
    middle = smooth_step(np.add(y, side * np.float32(0.35)), -9, 1)
    front = smooth_step(np.subtract(y, side * np.float32(0.4)), 12, 26)
    sella = exp((x * np.float32(1 / 13)) ** 2 * np.float32(-1)) * (middle - front)
    floor: Floats = -60 + 18 * middle + 20 * front + 13 * sella
    return floor


def _paint_soft_tissue(
    canvas: Canvas,
    skull: Skull,
    outer: Floats,
    swellings: list[tuple[Xyz, float]],
    texture: Floats,
) -> Floats:
    """Skin, fat and muscle; returns the distance to the skin."""
    x, y, z, blur = canvas.x, canvas.y, canvas.z, canvas.blur_mm
    head = outer - np.float32(skull.scalp)
    for centre, height in swellings:
        bump = np.zeros((), np.float32)
        for c, c0 in zip((x, y, z), centre, strict=True):
            bump = bump + (c - np.float32(c0)) ** 2
        head -= np.float32(height) * exp(bump * np.float32(-1 / (2 * 17**2)))
    low = canvas.box((0, 20, -80), (100, 140, 75))
    if low is not None:
        head[low] = _face(canvas.part(low), skull, head[low])
    paint(canvas.hu, occupancy(head, blur), skull.muscle_hu)
    paint(canvas.hu, occupancy(head + np.float32(SKIN_MM), blur), skull.fat_hu)
    deep = head + np.float32(skull.scalp + 1.5)
    deep = np.maximum(deep, outer - 1.5) if not swellings else np.maximum(deep, outer - 0.5)
    paint(canvas.hu, occupancy(deep + texture, blur), skull.muscle_hu)
    for centre, height in swellings:
        part = canvas.within(centre, (30, 30, 30))
        if part is not None:
            share = occupancy(ellipsoid(part.x, part.y, part.z, centre, (20, 20, 20)), 8.0)
            where = canvas.box(centre, (30, 30, 30))
            share *= occupancy(head[where] + np.float32(SKIN_MM), blur)
            paint(part.hu, share * np.float32(min(1.0, height / 5)), 55.0)
    for side in (-1, 1):
        centre = (side * 72.0, 18.0, -14.0)
        part = canvas.within(centre, (10, 32, 36))
        if part is not None:
            share = occupancy(ellipsoid(part.x, part.y, part.z, centre, (8, 28, 32)), 4.0)
            where = canvas.box(centre, (10, 32, 36))
            share *= occupancy(head[where] + np.float32(SKIN_MM + 1.5), blur)
            paint(part.hu, share, skull.muscle_hu)
    return head


def _face(part: Canvas, skull: Skull, head: Floats) -> Floats:
    """The head's surface with face, nose, ears and neck joined on."""
    x, y, z, k = part.x, part.y, part.z, skull.face
    ax = np.abs(x)
    face = ellipsoid(x, y, z, (0, 32, -55), (58 * k, 60 * k, 62 * k))
    nose = ellipsoid(x, y, z, (0, 90 * k, -48), (11, 16 * skull.nose, 20 * skull.nose))
    neck = np.maximum(ellipsoid(x, y, z, (0, -22, -130), (56, 60, 300)), z + np.float32(50))
    ears = ellipsoid(ax, y, z, (74, -8, -38), (7, 12 * skull.ears, 20 * skull.ears))
    head = smooth_min(head, face, 6)
    head = smooth_min(head, neck, 10)
    head = smooth_min(head, nose, 4)
    return np.minimum(head, ears)


def _paint_vault(
    canvas: Canvas, skull: Skull, bone: Floats, inside: Floats, thickness: Floats, texture: Floats
) -> None:
    blur = canvas.blur_mm
    paint(canvas.hu, occupancy(bone, blur), skull.table_hu)
    table = np.maximum(thickness * np.float32(0.3), np.float32(1.4))
    spongy = np.maximum(bone + table, table - inside)
    diploe = texture * np.float32(90) + np.float32(skull.diploe_hu)
    paint(canvas.hu, occupancy(spongy, blur), diploe)


def _carve_base(canvas: Canvas, inside: Floats, texture: Floats) -> None:
    """Take petrous bones and clivus out of the intracranial space."""
    where = canvas.box((0.0, -18.0, -48.0), (74, 30, 20))
    if where is None:
        return
    part = canvas.part(where)
    x, y, z = np.abs(part.x), part.y, part.z
    petrous = capsule(x, y, z * np.float32(1.25), (12, -8, -56), (66, -28, -57), 9.5)
    clivus = capsule(x, y, z, (0, -2, -36), (0, -8, -62), 6.0)
    bone = np.minimum(petrous + np.float32(0.7) * texture[where], clivus)
    inside[where] = np.maximum(inside[where], -bone)


def _paint_base(canvas: Canvas, skull: Skull, rough: Floats) -> None:
    """Dense petrous bone with air cells and ear canal, clivus, and the upper neck."""
    blur = canvas.blur_mm
    where = canvas.box((0.0, -22.0, -46.0), (86, 34, 26))
    if where is not None:
        part = canvas.part(where)
        x, y, z = np.abs(part.x), part.y, part.z
        petrous = capsule(x, y, z * np.float32(1.25), (12, -8, -56), (66, -28, -57), 9.5)
        petrous += np.float32(0.7) * rough[where]
        paint(part.hu, occupancy(petrous, blur), skull.table_hu * 0.95)
        k = skull.mastoid_cells
        cells = ellipsoid(x, y, z, (60, -28, -50), (7 * k, 11 * k, 11 * k)) + 2 * rough[where]
        middle_ear = ellipsoid(x, y, z, (46, -18, -45), (4, 4, 4))
        canal = capsule(x, y, z, (48, -17, -45), (80, -14, -42), 3.2)
        paint(part.hu, occupancy(cells, blur), -450 + 250 * rough[where])
        paint(part.hu, occupancy(np.minimum(canal, middle_ear), blur), AIR_HU)
    middle = canvas.within((0, -6, -50), (16, 20, 24))
    if middle is not None:
        clivus = capsule(middle.x, middle.y, middle.z, (0, -2, -36), (0, -8, -62), 6.0)
        paint(middle.hu, occupancy(clivus, blur), skull.table_hu * 0.6)
    neck = canvas.within((0, -27, -85), (34, 34, 30))
    if neck is not None:
        _paint_neck(neck, skull)


def _paint_neck(part: Canvas, skull: Skull) -> None:
    x, y, z, blur = part.x, part.y, part.z, part.blur_mm
    below: Floats = z + np.float32(58)
    radius = np.sqrt(x * x + (y + np.float32(28)) ** 2)
    ring = np.maximum(np.abs(radius - 21) - 5, np.abs(z + np.float32(74)) - 7)
    paint(part.hu, occupancy(ring, blur), skull.table_hu * 0.7)
    dens = capsule(x, y, z, (0, -12, -70), (0, -12, -110), 5.0)
    paint(part.hu, occupancy(dens, blur), skull.table_hu * 0.7)
    paint(part.hu, occupancy(np.maximum(radius - 15, below), blur), 8.0)
    cord: Floats = np.sqrt(x * x + (y + np.float32(27)) ** 2) - np.float32(6.5)
    paint(part.hu, occupancy(np.maximum(cord, below), blur), 32.0)


def _paint_face(canvas: Canvas, skull: Skull, texture: Floats) -> None:
    """Orbits, facial bones, sinuses and the nasal cavity, on both sides at once."""
    where = canvas.box((0, 55, -55), (62, 52, 60))
    if where is None:
        return
    part, rough = canvas.part(where), texture[where]
    x, y, z, blur, hu = np.abs(part.x), part.y, part.z, part.blur_mm, part.hu
    orbit = ellipsoid(x, y, z, (28, 60, -36), (16, 24, 14.5))
    maxilla = ellipsoid(x, y, z, (26, 56, -64), _scaled((14, 17, 15), skull.maxillary_sinus))
    ethmoid = ellipsoid(x, y, z, (5, 56, -38), (6, 20, 11))
    sphenoid = ellipsoid(x, y, z, (5, 20, -37), _scaled((7, 10, 8), skull.sphenoid_sinus))
    cheek = capsule(x, y, z, (44, 64, -52), (64, 20, -46), 3.2)
    bone = np.minimum(np.minimum(orbit, maxilla), np.minimum(ethmoid, sphenoid)) - 1.8
    open_front = y + np.abs(z + np.float32(40)) * np.float32(0.12) - np.float32(76)
    bone = np.minimum(np.maximum(bone, open_front), cheek)
    paint(hu, occupancy(bone, blur), skull.table_hu * 0.75)
    _paint_jaw(part, skull)
    nasal = ellipsoid(x, y, z, (0, 62, -62), (11, 30, 16))
    paint(hu, occupancy(nasal, blur), 40.0)
    passage = np.maximum(nasal + 1.5, np.abs(x - 6 - rough) - 1.6)
    for cavity in (passage, ethmoid + np.maximum(rough, -0.5), sphenoid):
        paint(hu, occupancy(cavity, blur), AIR_HU)
    fluid = np.where(part.x > 0, *(np.float32(15.0 if f else AIR_HU) for f in skull.sinus_fluid))
    paint(hu, occupancy(maxilla, blur), fluid)
    if skull.frontal_sinus:
        k = skull.frontal_sinus
        frontal = ellipsoid(x, y, z, (9, 84, -12), (11 * k, 3.5, 10 * k))
        paint(hu, occupancy(frontal, blur), AIR_HU)
    _paint_eyes(part, orbit, skull)


def _scaled(radii: Xyz, k: float) -> Xyz:
    return radii[0] * k, radii[1] * k, radii[2] * k


def _paint_eyes(part: Canvas, orbit: Floats, skull: Skull) -> None:
    x, y, z, blur, hu = np.abs(part.x), part.y, part.z, part.blur_mm, part.hu
    paint(hu, occupancy(np.maximum(orbit, y - 80), blur), skull.fat_hu * 0.8)
    muscles = np.sqrt((np.abs(x - 29) - 8) ** 2 + (z + np.float32(36)) ** 2) - 1.8
    muscles = np.maximum(muscles, np.maximum(y - 68, 42 - y))
    paint(hu, occupancy(np.maximum(muscles, orbit), blur), skull.muscle_hu)
    nerve = capsule(x, y, z, (29, 58, -36), (12, 30, -32), 2.2)
    paint(hu, occupancy(nerve, blur), 32.0)
    globe = ellipsoid(x, y, z, (29, 70, -36), (12, 12, 12))
    paint(hu, occupancy(globe - 1, blur), 45.0)
    paint(hu, occupancy(globe, blur), 12.0)
    lens = ellipsoid(x, y, z, (29, 79, -36), (4, 2.4, 4))
    paint(hu, occupancy(lens, blur), 80.0)


def _paint_jaw(part: Canvas, skull: Skull) -> None:
    """Upper and lower dental arches, seen only in scans that reach below the skull base."""
    x, y, z, blur = part.x, part.y, part.z, part.blur_mm
    arch = np.abs(np.sqrt(x * x + ((y - 50) * np.float32(0.8)) ** 2) - 25) - 4
    arch = np.maximum(arch, 44 - y)
    gums = np.maximum(arch, np.abs(z + np.float32(92)) - 11)
    paint(part.hu, occupancy(gums, blur), skull.table_hu * 0.7)
    if skull.teeth:
        crowns = np.maximum(arch + 1, np.abs(z + np.float32(92)) - 7)
        paint(part.hu, occupancy(crowns, blur), 2200.0)
