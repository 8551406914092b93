"""Is there a head with a brain in the volume, whole and in HU? Decided by content alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.dicom.reasons import Reason
from headct.volume.head import TISSUE_HU, Head

Fault = tuple[Reason, str]

LEAST_RANGE_HU = 10
AIR_HU_OK = (-1050.0, -940.0)
AIR_HU_POSSIBLE = (-1100.0, -800.0)
LEAST_AIR_FRACTION = 0.02
LEAST_CAVITY_CM3 = 30.0
TISSUE_HU_POSSIBLE = (-120.0, 120.0)
"""From fat to fresh blood: the middle value of whatever part of a body it is."""
DENSE_HU, MOST_DENSE = 500, 0.2
WIDEST_HEAD_MM = 280.0
BRAIN_RANGE_HU = (-20.0, 110.0)
LEAST_BRAIN_FRACTION = 0.5
BRAIN_HU_OK = (14.0, 60.0)
BRAIN_HU_POSSIBLE = (0.0, 90.0)
CUT_AREA_CM2 = 20.0
"""A topmost section larger than this is no cap of the head."""
SHORTEST_MM = 90.0
"""Vertex to skull base; a shorter scan shows part of the head."""
CUT_SIDE_CM2 = 15.0
METAL_HU, METAL_CM3 = 2500, 3.0
VESSEL_HU, MAX_VESSEL_HU = 180, 800
"""Brighter than any clot, less than compact bone and metal."""
VESSEL_CM3 = 0.3, 2.0
"""The least piece, since noise and specks are smaller, and the least sum."""
BASE_SHARE = 0.4
"""Lowest part of the cavity, which the bones of the skull base reach into."""
CYLINDER_MM, SAME_SECTION = 60.0, 0.95
"""Sections that share this much over this length: an ellipsoid's share 0.89 at most."""


def check_content(hu: NDArray[Any], head: Head | None) -> list[Fault]:
    """What is wrong with a volume, or worth a warning, as reason codes; empty for a plain head CT.

    A constant image, values that are no HU and the absence of a head end the list early, since
    the later questions have no meaning then. Who refuses and who flags is not decided here.

    Args:
        hu: [z y x], any orientation.
        head: from `find_head` on that volume; None where it found none.
    """
    if int(hu.max()) - int(hu.min()) < LEAST_RANGE_HU:
        return [(Reason.CONSTANT_IMAGE, "")]
    if head is None:
        fault = _check_values(hu[:, ::4, ::4])
        return [fault or (Reason.NOT_HEAD, "no solid piece of tissue")]
    fault = _check_air(head)
    if fault is not None and fault[0] == Reason.IMPLAUSIBLE_HU:
        return [fault]
    faults = [fault] if fault is not None else []
    not_head = _check_skull(head) or _check_shape(head)
    if not_head is not None:
        return [*faults, not_head]
    checks = (_check_brain, _check_vertex, _check_cover, _check_metal, _check_vessels)
    found = [check(head) for check in checks]
    return faults + [fault for fault in found if fault is not None]


def _check_values(hu: NDArray[Any]) -> Fault | None:
    """What a volume without any solid tissue says about its scale."""
    if float((hu < TISSUE_HU).mean()) < LEAST_AIR_FRACTION:
        return Reason.IMPLAUSIBLE_HU, "hardly any voxel has the value of air"
    return None


def _check_air(head: Head) -> Fault | None:
    air = head.hu[(head.hu < TISSUE_HU) & ~head.mask]
    if air.size < LEAST_AIR_FRACTION * head.hu.size:
        return Reason.IMPLAUSIBLE_HU, "hardly any voxel has the value of air"
    return _placed("air", float(np.median(air)), AIR_HU_OK, AIR_HU_POSSIBLE)


def _placed(
    name: str, hu: float, ok: tuple[float, float], possible: tuple[float, float]
) -> Fault | None:
    if ok[0] <= hu <= ok[1]:
        return None
    inside = possible[0] <= hu <= possible[1]
    return Reason.SUSPECT_HU if inside else Reason.IMPLAUSIBLE_HU, f"{name} is at {hu:.0f} HU"


def _check_skull(head: Head) -> Fault | None:
    width_mm = head.size_mm_zyx[2]
    if width_mm > WIDEST_HEAD_MM:
        return Reason.NOT_HEAD, f"{width_mm:.0f} mm wide"
    if float(head.cavity.sum()) * head.voxel_cm3 >= LEAST_CAVITY_CM3:
        return None
    tissue_hu = float(np.median(head.hu[head.mask]))
    if not TISSUE_HU_POSSIBLE[0] <= tissue_hu <= TISSUE_HU_POSSIBLE[1]:
        return Reason.IMPLAUSIBLE_HU, f"tissue is at {tissue_hu:.0f} HU"
    dense = float((head.hu[head.mask] > DENSE_HU).mean())
    if dense > MOST_DENSE:
        return Reason.IMPLAUSIBLE_HU, f"{100 * dense:.0f} % of the tissue is as dense as bone"
    return Reason.NOT_HEAD, "no skull around a brain"


def _check_shape(head: Head) -> Fault | None:
    """A cylinder for tests has the same section everywhere; a head has not."""
    areas = head.mask.sum(axis=(1, 2))
    shown = np.flatnonzero(areas > SAME_SECTION * np.median(areas[areas > 0]))
    if shown.size * float(head.affine_zyx[0, 0]) < CYLINDER_MM:
        return None
    inner = head.mask[shown[1:-1]]
    middle = inner[len(inner) // 2]
    shared = (inner & middle).sum(axis=(1, 2)) / (inner | middle).sum(axis=(1, 2))
    if float(shared.min()) < SAME_SECTION:
        return None
    return Reason.NOT_HEAD, "the same section from end to end: a cylinder"


def _check_brain(head: Head) -> Fault | None:
    inside = head.hu[head.cavity]
    low, high = BRAIN_RANGE_HU
    if ((inside > low) & (inside < high)).mean() >= LEAST_BRAIN_FRACTION:
        return _placed("brain", float(np.median(inside)), BRAIN_HU_OK, BRAIN_HU_POSSIBLE)
    if (inside < TISSUE_HU).mean() > 0.5:
        return Reason.NO_BRAIN, "the skull is mostly empty"
    return Reason.IMPLAUSIBLE_HU, f"inside the skull the middle value is {np.median(inside):.0f} HU"


def _check_vertex(head: Head) -> Fault | None:
    top_cm2 = float(head.mask[-1].sum()) * _pixel_cm2(head)
    if top_cm2 <= CUT_AREA_CM2:
        return None
    return Reason.VERTEX_CUT, f"{top_cm2:.0f} cm2 of head in the topmost slice"


def _check_cover(head: Head) -> Fault | None:
    if head.size_mm_zyx[0] < SHORTEST_MM:
        return Reason.PARTIAL_HEAD, f"{head.size_mm_zyx[0]:.0f} mm from top to bottom"
    z_mm, y_mm, x_mm = head.spacing_mm_zyx
    front = max(head.mask[:, 0].sum(), head.mask[:, -1].sum()) * z_mm * x_mm / 100
    side = max(head.mask[:, :, 0].sum(), head.mask[:, :, -1].sum()) * z_mm * y_mm / 100
    if max(front, side) > CUT_SIDE_CM2:
        return Reason.PARTIAL_HEAD, "the head reaches the edge of the field of view"
    return None


def _check_metal(head: Head) -> Fault | None:
    metal_cm3 = float((head.hu[head.mask] > METAL_HU).sum()) * head.voxel_cm3
    return (Reason.METAL, f"{metal_cm3:.0f} cm3") if metal_cm3 > METAL_CM3 else None


def _check_vessels(head: Head) -> Fault | None:
    """Pieces above the skull base as bright as the vessels of an angiography; clots are not."""
    shown = np.flatnonzero(head.cavity.any(axis=(1, 2)))
    upper = slice(int(shown[0] + BASE_SHARE * len(shown)), int(shown[-1]) + 1)
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[[0, 2]] = False
    inside = ndimage.binary_fill_holes(head.cavity[upper], in_plane)  # it leaves out what is dense
    hu = head.hu[upper]
    labels, n = ndimage.label((hu > VESSEL_HU) & inside)
    if n == 0:
        return None
    pieces = np.arange(1, n + 1)
    cm3 = ndimage.sum_labels(labels > 0, labels, pieces) * head.voxel_cm3
    is_vessel = (cm3 > VESSEL_CM3[0]) & (ndimage.maximum(hu, labels, pieces) < MAX_VESSEL_HU)
    total = float(cm3[is_vessel].sum())
    if total < VESSEL_CM3[1]:
        return None
    return Reason.SUSPECT_CONTRAST, f"{total:.0f} cm3 above {VESSEL_HU} HU inside the skull"


def _pixel_cm2(head: Head) -> float:
    return float(head.spacing_mm_zyx[1] * head.spacing_mm_zyx[2]) / 100
