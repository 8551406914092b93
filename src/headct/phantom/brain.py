"""Paint the brain: cortex and white matter, CSF spaces, deep grey matter, ventricles, meninges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headct.phantom.anatomy import VAULT_RADII_MM, Brain
from headct.phantom.canvas import Canvas
from headct.phantom.exact import power
from headct.phantom.fields import (
    LINEAR_BELOW_MM,
    Floats,
    NoiseLookup,
    capsule,
    ellipsoid,
    occupancy,
    paint,
    sheet_distance,
    smooth_step,
)
from headct.phantom.head import HeadMaps
from headct.phantom.vessels import paint_arteries

SULCUS_DEPTH_MM = 23.0
SULCI_MM = 21.0
"""Wavelength of the noise whose zero level is the sulci: two gyri."""
INWARD = 0.7
"""Sulci run towards the centre: noise is looked up at p / radius ** INWARD."""


@dataclass(frozen=True)
class Compartments:
    """Shares of each voxel, [z y x] of the canvas; lesions are painted by them.

    Attributes:
        inside: of the intracranial space.
        csf: of sulci, cisterns and the subarachnoid space; the ventricles are left out.
        csf_mm: distance to these spaces.
        white: of white matter.
        tissue: of brain.
        ventricle: of the ventricles.
        ventricle_mm: distance to the lateral ventricles, FAR away from them.
    """

    inside: Floats
    csf: Floats
    csf_mm: Floats
    white: Floats
    tissue: Floats
    ventricle: Floats
    ventricle_mm: Floats


def paint_brain(canvas: Canvas, maps: HeadMaps, brain: Brain) -> Compartments:
    """Fill the intracranial space.

    Args:
        canvas: with the head painted, see `head.paint_head`.
        maps: what `head.paint_head` returned for this canvas.
        brain: the person's brain, changed by diffuse findings.
    """
    x, y, z, blur = canvas.xb, canvas.yb, canvas.zb, canvas.blur_mm
    ax = np.abs(x)
    inside = occupancy(maps.inside, blur)
    fissure = _fissure(ax, y, z)
    cisterns = _cisterns(canvas, ax, maps.texture) - np.float32(brain.cistern)
    cisterns = np.minimum(cisterns, fissure)
    for centre, radii in brain.cysts:
        where = canvas.box(centre, radii)
        if where is not None:
            cyst = ellipsoid(x[where], y[where], z[where], centre, radii)
            cisterns[where] = np.minimum(cisterns[where], cyst)
    sulci, cortex = _sulci(canvas, maps, brain)
    lobes = brain.white_hu + (brain.grey_hu - brain.white_hu) * occupancy(
        np.minimum(cortex, cisterns) - np.float32(brain.ribbon), blur
    )
    grey = (lobes - brain.white_hu) / np.float32(max(brain.grey_hu - brain.white_hu, 0.1))
    below_mm = _below_tentorium(ax, y, z)
    below = occupancy(below_mm, blur)
    folia = np.float32(brain.grey_hu - 1.5) + 1.2 * maps.texture
    lobes += (folia - lobes) * below
    grey += (0.7 - grey) * below
    posterior = np.maximum(np.abs(below_mm + 1) - 1, -maps.inside - np.float32(brain.gap))
    sulci = np.where(below_mm < 1, np.maximum(posterior, np.minimum(sulci, 1)), sulci)
    csf_mm = np.minimum(sulci, cisterns)
    csf = occupancy(csf_mm, blur)
    paint(canvas.hu, inside, lobes)
    _paint_deep_grey(canvas, brain, ax, grey)
    stem = ellipsoid(ax, y, z, (0, -15, -30), (13, 11.5, 24))
    in_stem = occupancy(stem, blur)
    paint(canvas.hu, in_stem * inside, brain.white_hu + 2.5)
    csf *= 1 - in_stem
    np.maximum(csf_mm, -stem, out=csf_mm)
    csf *= inside
    paint(canvas.hu, csf, brain.csf_hu)
    ventricle, ventricle_mm = _paint_ventricles(canvas, brain, ax, grey)
    _paint_meninges(canvas, maps, brain)
    paint_arteries(canvas, brain.arteries)
    _paint_choroid(canvas, brain.choroid_hu, ventricle)
    for spot in brain.calcifications:
        part = canvas.within(spot.centre, spot.radii)
        if part is not None:
            share = occupancy(ellipsoid(part.xb, part.yb, part.zb, spot.centre, spot.radii), blur)
            paint(part.hu, share, spot.hu)
    csf *= 1 - ventricle
    tissue = inside * (1 - csf) * (1 - ventricle)
    return Compartments(inside, csf, csf_mm, tissue * (1 - grey), tissue, ventricle, ventricle_mm)


def _fissure(ax: Floats, y: Floats, z: Floats) -> Floats:
    """The interhemispheric fissure, down to the corpus callosum."""
    callosum = np.sqrt((y * np.float32(1 / 47)) ** 2 + ((z - 1) * np.float32(1 / 29)) ** 2) - 1
    fissure: Floats = np.maximum(ax - np.float32(1.1), np.maximum(callosum * -30, -12 - z))
    return fissure


def _cisterns(canvas: Canvas, ax: Floats, rough: Floats) -> Floats:
    """Sylvian fissures and basal cisterns."""
    x, y, z = ax, canvas.yb, canvas.zb
    far = np.full(x.shape, np.float32(12))
    for centre, radii, half in (
        ((36.0, 6.0, 6.0), (2.0, 19.0, 13.0), (40.0, 21.0, 15.0)),
        ((0.0, 10.0, -19.0), (12.0, 9.0, 6.0), (14.0, 11.0, 8.0)),
        ((0.0, -33.0, 2.0), (10.0, 5.0, 5.0), (12.0, 7.0, 7.0)),
        ((0.0, 0.0, -36.0), (14.0, 6.0, 8.0), (16.0, 8.0, 10.0)),
        ((0.0, -60.0, -52.0), (12.0, 9.0, 6.0), (14.0, 11.0, 8.0)),
    ):
        where = canvas.box((0.0, centre[1], centre[2]), half)
        if where is not None:
            near = ellipsoid(x[where], y[where], z[where], centre, radii)
            far[where] = np.minimum(far[where], near)
    where = canvas.box((0.0, 8.0, 0.0), (66.0, 24.0, 20.0))
    if where is not None:
        rising = z[where] + (y[where] - 12) * np.float32(0.45) + np.float32(3)
        cleft = ellipsoid(x[where], y[where], rising, (47, 8, 0), (15, 22, 2.0))
        far[where] = np.minimum(far[where], cleft + rough[where] * np.float32(0.6))
    where = canvas.box((0.0, -16.0, -8.0), (24.0, 20.0, 9.0))
    if where is not None:
        ring = ellipsoid(x[where], y[where], z[where], (0, -14, -8), (17, 15, 40))
        ambient = np.abs(ring + 1.5 * rough[where]) - 0.9
        ambient = np.maximum(ambient, np.maximum(np.abs(z[where] + 8) - 6, y[where] + 8))
        far[where] = np.minimum(far[where], ambient)
    return far


def _sulci(canvas: Canvas, maps: HeadMaps, brain: Brain) -> tuple[Floats, Floats]:
    """Distance to sulci and subarachnoid space, and depth below the nearest surface of cortex."""
    x, y, z = canvas.xb, canvas.yb, canvas.zb
    a, b, c = VAULT_RADII_MM
    radius2 = (
        (x * np.float32(1 / a)) ** 2 + (y * np.float32(1 / b)) ** 2 + (z * np.float32(1 / c)) ** 2
    )
    stretch = power(radius2 + np.float32(0.02), -INWARD / 2)
    at = NoiseLookup(
        x * stretch,
        y * stretch,
        z * stretch,
        brain.sulci_at,
        linear=canvas.blur_mm < LINEAR_BELOW_MM,
    )
    sheet = at(sheet_distance("sulci", SULCI_MM)) / stretch
    depth = -maps.inside - np.float32(brain.gap)
    share = np.clip(1.15 - depth * np.float32(1 / SULCUS_DEPTH_MM), 0, 1)
    too_deep = depth - np.float32(SULCUS_DEPTH_MM) - 5 * maps.shape
    sheet = np.maximum(sheet, too_deep)
    sulci = np.minimum(sheet - np.float32(brain.sulcus) * share, depth)
    return sulci, np.minimum(depth, sheet)


def _below_tentorium(ax: Floats, y: Floats, z: Floats) -> Floats:
    """Distance to the posterior fossa's contents."""
    below: Floats = np.maximum((z - _tentorium(ax, y)) * np.float32(0.8), y + np.float32(10))
    return below


def _tentorium(ax: Floats, y: Floats) -> Floats:
    sheet: Floats = ax * np.float32(-0.5) + np.minimum(y + np.float32(36), 0) * np.float32(0.55)
    return sheet


def _paint_deep_grey(canvas: Canvas, brain: Brain, ax: Floats, grey: Floats) -> None:
    for centre, radii in (
        ((12.0, -10.0, 5.0), (8.0, 13.0, 9.0)),
        ((25.0, 8.0, 4.0), (6.5, 15.0, 10.0)),
        ((14.5, 19.0, 11.0), (4.5, 9.0, 8.0)),
    ):
        where = canvas.box((0.0, centre[1], centre[2]), (centre[0] + radii[0], radii[1], radii[2]))
        if where is None:
            continue
        d = ellipsoid(ax[where], canvas.yb[where], canvas.zb[where], centre, radii)
        share = occupancy(d, canvas.blur_mm)
        paint(canvas.hu[where], share, brain.grey_hu)
        grey[where] = np.maximum(grey[where], share)


def _paint_ventricles(
    canvas: Canvas, brain: Brain, ax: Floats, grey: Floats
) -> tuple[Floats, Floats]:
    share = np.zeros_like(canvas.hu)
    distance = np.full_like(canvas.hu, 30)
    k = brain.ventricle
    grown = 1 + 0.35 * (k - 1)
    where = canvas.box((0.0, -13.0, 2.0), (36 * grown, 52 + 4 * k, 28 * grown))
    if where is not None:
        x, y, z = ax[where], canvas.yb[where], canvas.zb[where]
        d = _lateral_ventricle(x, y, z, k, grown, brain.temporal_horn)
        septum = np.float32(0.7) - x
        share[where] = occupancy(np.maximum(d, septum), canvas.blur_mm)
        distance[where] = d
        width = brain.third * 0.5 * (1 + 0.8 * (k - 1))
        third = ellipsoid(x, y, z, (0, -3, 0), (width, 13, 9))
        fourth = ellipsoid(x, y, z, (0, -33, -31), (6.3 * grown, 5 * grown, 8))
        middle = occupancy(np.minimum(third, fourth), canvas.blur_mm)
        share[where] = np.maximum(share[where], middle)
    paint(canvas.hu, share, brain.csf_hu)
    if brain.periventricular_hu:
        rim = smooth_step(distance, -1, 0.5) * (1 - smooth_step(distance, 1, 8))
        dark = rim * (1 - share) * (1 - grey) * np.float32(brain.periventricular_hu)
        np.add(canvas.hu, dark, out=canvas.hu)
    return share, distance


def _paint_choroid(canvas: Canvas, hu: float, ventricle: Floats) -> None:
    """The choroid plexus in both trigones; it hangs to the back and stays within the ventricle."""
    for side in (-1, 1):
        centre, radii = (side * 19.0, -35.0, 9.0), (2.6, 5.5, 4.5)
        where = canvas.box(centre, radii)
        if where is not None:
            part = canvas.part(where)
            plexus = ellipsoid(part.xb, part.yb, part.zb, centre, radii)
            paint(part.hu, occupancy(plexus, part.blur_mm) * ventricle[where], hu)


def _lateral_ventricle(
    x: Floats, y: Floats, z: Floats, k: float, grown: float, temporal_horn: float
) -> Floats:
    """Five capsules: frontal horn, body, atrium, occipital and temporal horn (x is |x|)."""
    g = grown
    frontal = capsule(x, y, z, (4 * g, 6, 13), (11.5 * g, 29, 8), 4.4 * k)
    body = capsule(x, y, z, (4 * g, 6, 14), (10 * g, -22, 18 * g), 4.0 * k)
    atrium = capsule(x, y, z, (11 * g, -22, 17 * g), (22 * g, -36, 6), 5.2 * k)
    occipital = capsule(x, y, z, (21 * g, -36, 6), (19 * g, -56, 4), 2.8 * k)
    temporal = capsule(x, y, z, (23 * g, -36, 4), (30, -14, -17), 1.9 * k * temporal_horn)
    horns = np.minimum(np.minimum(frontal, body), np.minimum(atrium, occipital))
    return np.minimum(horns, temporal)


def _paint_meninges(canvas: Canvas, maps: HeadMaps, brain: Brain) -> None:
    """Falx, tentorium and the venous sinuses along them."""
    blur, hu = canvas.blur_mm, canvas.hu
    where = canvas.box((0.0, 0.0, 30.0), (4.0, 90.0, 55.0))
    if where is not None:
        x = 0.5 * (canvas.x[where] + canvas.xb[where])
        y, z, deep = canvas.y[where], canvas.z[where], maps.inside[where]
        callosum = np.sqrt((y * np.float32(1 / 52)) ** 2 + ((z - 2) * np.float32(1 / 38)) ** 2)
        falx = np.maximum(np.abs(x) - 0.9, np.maximum((1 - callosum) * 40, -5 - z))
        paint(hu[where], occupancy(np.maximum(falx, deep), blur), brain.falx_hu)
        sagittal = np.maximum(np.abs(x) - (4.5 + deep * 0.5), -deep - 6)
        sagittal = np.maximum(sagittal, np.minimum(30 - z, y + 45))
        paint(hu[where], occupancy(np.maximum(sagittal, deep), blur), brain.sinus_hu)
    where = canvas.box((0.0, -45.0, -18.0), (60.0, 42.0, 24.0))
    if where is not None:
        ax, y, z = np.abs(canvas.xb[where]), canvas.yb[where], canvas.zb[where]
        deep = maps.inside[where]
        sheet = np.abs(z - _tentorium(ax, y)) * np.float32(0.8) - 0.6
        edge = np.maximum(y + 12, 17 - np.sqrt(ax * ax + (y + 16) ** 2))
        sheet = np.maximum(np.maximum(sheet, edge), deep)
        paint(hu[where], occupancy(sheet, blur), brain.falx_hu - 8)
        transverse = np.maximum(np.abs(z - _tentorium(ax, y)) - 4, -deep - 5)
        transverse = np.maximum(np.maximum(transverse, y + 30), deep)
        paint(hu[where], occupancy(transverse, blur), brain.sinus_hu)
