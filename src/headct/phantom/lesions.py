"""Paint lesions into a painted head, and say which share of each voxel they take."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headct.phantom.brain import Compartments
from headct.phantom.canvas import Box, Canvas
from headct.phantom.exact import power
from headct.phantom.fields import Floats, Xyz, ellipsoid, occupancy, paint, smooth_step
from headct.phantom.findings import (
    Bleed,
    Collection,
    Diffuse,
    Fracture,
    Infarct,
    Lesion,
    Mass,
    Subarachnoid,
    VentricularBlood,
)
from headct.phantom.head import HeadMaps
from headct.phantom.profile import DrawnFinding

Share = tuple[DrawnFinding, Box, Floats]
"""A finding, where on the canvas, and its share of each voxel there."""

DURA_MM = 0.5
"""Between the bone and a collection."""
DISTENDED_MM, FILLED_MM = 0.6, 0.9
"""Sulci and cisterns are wider where there is blood in them, more so where they are full of it."""
REACH = 1.2
"""Blood in the CSF thins out until this many radii."""
ROUGH = 0.12
"""Roughness of a bleed's surface as a share of its radius, so that it hardly adds volume."""


def paint_lesions(
    canvas: Canvas, maps: HeadMaps, parts: Compartments, lesions: tuple[Lesion, ...]
) -> Iterator[Share]:
    """Paint each lesion inside the skull that touches the canvas."""
    for lesion in sorted(lesions, key=lambda lesion: isinstance(lesion, Collection)):
        match lesion:
            case Collection():
                found = _collection(canvas, maps, lesion)
            case Subarachnoid():
                found = _subarachnoid(canvas, maps, parts, lesion)
            case Bleed():
                found = _bleed(canvas, maps, parts, lesion)
            case VentricularBlood():
                found = _ventricular(canvas, parts, lesion)
            case Infarct():
                found = _infarct(canvas, maps, parts, lesion)
            case Mass():
                found = _mass(canvas, maps, parts, lesion)
            case Diffuse(finding="hydrocephalus"):
                found = (_everywhere(canvas), parts.ventricle)
            case _:
                found = None
        if found is not None:
            yield lesion.finding, *found


def _everywhere(canvas: Canvas) -> Box:
    nz, ny, nx = canvas.hu.shape
    return slice(0, nz), slice(0, ny), slice(0, nx)


def distance(x: Floats, y: Floats, z: Floats, centre: Xyz) -> Floats:
    """Distance to a point."""
    squares = np.zeros((), np.float32)
    for c, c0 in zip((x, y, z), centre, strict=True):
        squares = squares + (c - np.float32(c0)) ** 2
    return np.sqrt(squares)


def collection_share(part: Canvas, depth: Floats, lesion: Collection) -> Floats:
    """Share of each voxel.

    Args:
        part: of the canvas.
        depth: below the inner table, mm.
        lesion: what is painted.
    """
    rho = distance(part.x, part.y, part.z, lesion.centre) * np.float32(1 / lesion.radius_mm)
    d = depth - np.float32(lesion.thickness_mm) * (1 - power(rho, lesion.exponent))
    if lesion.finding == "sdh":
        sign = np.float32(1 if lesion.side == "right" else -1)
        d = np.maximum(d, 2 - part.x * sign)
    # of a layer between two surfaces, however thin: what lies within both
    within = occupancy(np.float32(DURA_MM) - depth, part.blur_mm)
    share: Floats = np.maximum(occupancy(d, part.blur_mm) + within - 1, 0)
    return share


def _collection(canvas: Canvas, maps: HeadMaps, lesion: Collection) -> tuple[Box, Floats] | None:
    r = lesion.radius_mm
    where = canvas.box(lesion.centre, (r, r, r))
    if where is None:
        return None
    part = canvas.part(where)
    share = collection_share(part, -maps.inside[where], lesion)
    value: float | Floats = lesion.hu
    if lesion.serum_hu:
        sunk = occupancy(part.y - np.float32(lesion.level_mm), max(4.0, canvas.blur_mm))
        value = lesion.serum_hu + (lesion.hu - lesion.serum_hu) * sunk
    elif lesion.swirl_hu:
        swirl = smooth_step(0.5 * maps.texture[where] + 1.2 * maps.shape[where], 0.3, 1.5)
        value = lesion.hu + (lesion.swirl_hu - lesion.hu) * swirl
    paint(part.hu, share, value)
    return where, share


def subarachnoid_share(
    maps: HeadMaps, parts: Compartments, where: Box, lesion: Subarachnoid, blur_mm: float
) -> Floats:
    """Share of blood if it were everywhere: clots in the sulci and cisterns they distend."""
    wider = np.float32(DISTENDED_MM if lesion.patchy else FILLED_MM)
    distended = occupancy(parts.csf_mm[where] - wider, blur_mm)
    distended *= parts.inside[where] * (1 - parts.ventricle[where])
    if not lesion.patchy:
        return distended
    clots = smooth_step(0.8 * maps.shape[where] + 0.3 * maps.texture[where], -0.6, 0.1)
    distended *= clots
    return distended


def near(away: Floats, radius_mm: float) -> Floats:
    """1 within about a radius, 0 beyond `REACH` of it."""
    return 1 - smooth_step(away, radius_mm * 0.85, radius_mm * REACH)


def _subarachnoid(
    canvas: Canvas, maps: HeadMaps, parts: Compartments, lesion: Subarachnoid
) -> tuple[Box, Floats] | None:
    r = lesion.radius_mm * REACH
    where = canvas.box(lesion.centre, (r, r, r))
    if where is None:
        return None
    part = canvas.part(where)
    away = distance(part.xb, part.yb, part.zb, lesion.centre)
    share = subarachnoid_share(maps, parts, where, lesion, canvas.blur_mm) * near(
        away, lesion.radius_mm
    )
    paint(part.hu, share, lesion.hu)
    return where, share


def _bleed(
    canvas: Canvas, maps: HeadMaps, parts: Compartments, lesion: Bleed
) -> tuple[Box, Floats] | None:
    reach = max(lesion.radii) + lesion.rim_mm + 4
    where = canvas.box(lesion.centre, (reach, reach, reach))
    if where is None:
        return None
    part = canvas.part(where)
    d = ellipsoid(part.x, part.y, part.z, lesion.centre, lesion.radii)
    rough = ROUGH * min(lesion.radii)
    d += maps.texture[where] * np.float32(min(1.2, rough))
    d += (maps.shape[where] - np.float32(lesion.bulge)) * np.float32(0.6 * rough)
    rim = (1 - smooth_step(d, 0, lesion.rim_mm)) * (parts.tissue[where])
    paint(part.hu, rim * np.float32(0.9), lesion.rim_hu)
    share = occupancy(d, canvas.blur_mm) * parts.inside[where]
    paint(part.hu, share, lesion.hu + maps.shape[where] * np.float32(1.5))
    return where, share


def ventricular_share(canvas: Canvas, ventricle: Floats, lesion: VentricularBlood) -> Floats:
    """Share of the ventricles in which blood can be, whatever its level."""
    if lesion.side == "both":
        return ventricle
    return ventricle * (canvas.xb > 0 if lesion.side == "right" else canvas.xb < 0)


def _ventricular(
    canvas: Canvas, parts: Compartments, lesion: VentricularBlood
) -> tuple[Box, Floats]:
    below = occupancy(canvas.y - np.float32(lesion.level_mm), canvas.blur_mm)
    share = ventricular_share(canvas, parts.ventricle, lesion) * below
    paint(canvas.hu, share, lesion.hu)
    return _everywhere(canvas), share


def _infarct(
    canvas: Canvas, maps: HeadMaps, parts: Compartments, lesion: Infarct
) -> tuple[Box, Floats] | None:
    reach = tuple(r + 4 for r in lesion.radii)
    where = canvas.box(lesion.centre, (reach[0], reach[1], reach[2]))
    if where is None:
        return None
    part = canvas.part(where)
    d = ellipsoid(part.xb, part.yb, part.zb, lesion.centre, lesion.radii)
    d += maps.texture[where] * np.float32(1.2)
    d += maps.shape[where] * np.float32(1.5 * ROUGH * min(lesion.radii))
    territory = occupancy(d, max(canvas.blur_mm, 3.0))
    share = territory * parts.tissue[where]
    paint(part.hu, share * np.float32(lesion.share), lesion.hu)
    if lesion.swelling > 0:  # sulci are effaced
        swollen = territory * parts.csf[where] * np.float32(0.7 * min(1.0, lesion.swelling))
        paint(part.hu, swollen, lesion.hu)
    return where, share


def _mass(
    canvas: Canvas, maps: HeadMaps, parts: Compartments, lesion: Mass
) -> tuple[Box, Floats] | None:
    reach = max(lesion.radii) + lesion.oedema_mm + 4
    where = canvas.box(lesion.centre, (reach, reach, reach))
    if where is None:
        return None
    part, rough = canvas.part(where), maps.texture[where]
    d = ellipsoid(part.x, part.y, part.z, lesion.centre, lesion.radii)
    spread = d + maps.shape[where] * np.float32(3)
    oedema = (1 - smooth_step(spread, lesion.oedema_mm * 0.6, lesion.oedema_mm)) * parts.white[
        where
    ]
    paint(part.hu, oedema, lesion.oedema_hu)
    d += rough * np.float32(0.8) + maps.shape[where] * np.float32(ROUGH * min(lesion.radii))
    share = occupancy(d, canvas.blur_mm) * parts.inside[where]
    paint(part.hu, share, lesion.hu + rough * np.float32(1.5))
    if lesion.core_share:
        radii = lesion.radii
        k = lesion.core_share
        core = ellipsoid(
            part.x, part.y, part.z, lesion.centre, (radii[0] * k, radii[1] * k, radii[2] * k)
        )
        paint(part.hu, occupancy(core + rough, canvas.blur_mm), lesion.core_hu)
    return where, share


def paint_fractures(canvas: Canvas, maps: HeadMaps, lesions: tuple[Lesion, ...]) -> Iterator[Share]:
    """Cut each fracture that touches the canvas into the skull."""
    for lesion in lesions:
        if isinstance(lesion, Fracture):
            found = _fracture(canvas, maps, lesion)
            if found is not None:
                yield lesion.finding, *found


def _fracture(canvas: Canvas, maps: HeadMaps, lesion: Fracture) -> tuple[Box, Floats] | None:
    half = lesion.length_mm / 2
    where = canvas.box(lesion.centre, (half, half, half))
    if where is None:
        return None
    part = canvas.part(where)
    plane = np.zeros((), np.float32)
    for c, c0, n in zip((part.x, part.y, part.z), lesion.centre, lesion.normal, strict=True):
        plane = plane + (c - np.float32(c0)) * np.float32(n)
    plane += maps.texture[where] * np.float32(0.8)
    cut = np.abs(plane) - np.float32(lesion.width_mm / 2)
    cut = np.maximum(cut, distance(part.x, part.y, part.z, lesion.centre) - np.float32(half))
    bone = occupancy(np.maximum(maps.skull[where], -maps.inside[where]), canvas.blur_mm)
    share = occupancy(cut, canvas.blur_mm) * bone
    paint(part.hu, share, lesion.hu)
    return where, share
