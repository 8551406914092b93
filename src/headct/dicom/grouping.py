"""Images of one series -> groups that can each be one volume; never two interleaved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from headct.dicom.geometry import axes
from headct.dicom.header import Header

SAME_DIRECTION = 1e-3
SAME_SPACING = 1e-3
OVERLAP_FRACTION = 0.5


def split_by_grid(images: Sequence[Header]) -> list[list[Header]]:
    """Groups of one matrix, orientation, pixel spacing, kernel and kind, and of one sweep.

    Images that agree in all that but cover the same ground twice (several slice thicknesses, time
    points, tube voltages, acquisitions) are split too; parts that follow each other are not, since
    a step-and-shoot scanner counts every rotation as an acquisition of its own.
    """
    return [part for group in _hard_groups(images) for part in _soft_split(group)]


def _hard_groups(images: Sequence[Header]) -> list[list[Header]]:
    """Images that can lie on one grid: the same matrix, kernel, kind, spacing, orientation."""
    groups: list[list[Header]] = []
    for header in images:
        for group in groups:
            if _same_grid(group[0], header):
                group.append(header)
                break
        else:
            groups.append([header])
    return groups


def _same_grid(a: Header, b: Header) -> bool:
    def exact(h: Header) -> tuple[Any, ...]:
        return h.rows, h.columns, h.kernel, h.image_type, h.frame_of_reference

    return (
        exact(a) == exact(b)
        and _near(a.orientation, b.orientation, SAME_DIRECTION)
        and _near(a.pixel_spacing_mm, b.pixel_spacing_mm, SAME_SPACING)
    )


def _near(a: Any, b: Any, tolerance: float) -> bool:
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


SPLITTERS: tuple[Callable[[Header], Any], ...] = (
    lambda header: header.slice_thickness_mm,
    lambda header: header.kvp,
    lambda header: header.temporal_position,
    lambda header: header.acquisition,
    lambda header: header.contrast,
    lambda header: header.acquisition_time,
)
"""What tells reconstructions or time points apart, where they cover the same ground."""


def _soft_split(images: list[Header]) -> list[list[Header]]:
    """Split where parts overlap in space; parts that follow each other are one sweep."""
    for key in SPLITTERS:
        parts: dict[Any, list[Header]] = defaultdict(list)
        for header in images:
            parts[key(header)].append(header)
        if len(parts) > 1 and min(map(len, parts.values())) > 1 and _overlap(parts.values()):
            return [small for part in parts.values() for small in _soft_split(part)]
    return [images]


def _overlap(parts: Iterable[Sequence[Header]]) -> bool:
    normal = axes(next(iter(next(iter(parts)))))[2]
    ranges = []
    for part in parts:
        heights = np.array([header.position_mm for header in part]) @ normal
        ranges.append((float(heights.min()), float(heights.max())))
    ranges.sort()
    return any(
        min(a[1], b[1]) - b[0] > OVERLAP_FRACTION * min(a[1] - a[0], b[1] - b[0])
        for a, b in pairwise(ranges)
    )
