"""Positions and orientations of slices -> one affine, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headct.dicom.header import Header
from headct.dicom.kind import Fault
from headct.dicom.reasons import Reason
from headct.errors import Refusal

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 10.0
MAX_STEP_MM = 25.0
MAX_POSITION_MM = 10_000.0
DIRECTION_TOLERANCE = 5e-3
"""Direction cosines are written with few digits; more than this is not rounding."""
SAME_POSITION_MM = 0.01
TILT_FROM_DEGREES = 0.5
MAX_TILT_DEGREES = 45.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a sorted stack are.

    Attributes:
        affine_lps: 4x4, (column, row, slice, 1) -> DICOM patient coordinates in mm.
        step_mm: distance between planes along their normal.
        tilt_degrees: angle between the step from slice to slice and the normal.
        normal: unit normal of the slices, LPS.
    """

    affine_lps: Array
    step_mm: float
    tilt_degrees: float
    normal: Array

    @property
    def is_axial(self) -> bool:
        """The normal is closer to the head-foot axis than to any other."""
        return bool(np.argmax(np.abs(self.normal)) == 2)


def check_plane(header: Header) -> Fault | None:
    """Why the plane of one image is not known; None where it is."""
    position, orientation = header.position_mm, header.orientation
    spacing = header.pixel_spacing_mm
    if position is None or orientation is None or spacing is None:
        return Reason.NO_GEOMETRY, ""
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        return Reason.BAD_GEOMETRY, "wrong number of values"
    if not np.isfinite((*position, *orientation, *spacing)).all():
        return Reason.BAD_GEOMETRY, "values that are not numbers"
    if not all(MIN_SPACING_MM <= mm <= MAX_SPACING_MM for mm in spacing):
        return Reason.BAD_GEOMETRY, "pixel spacing is zero or absurd"
    if max(abs(mm) for mm in position) > MAX_POSITION_MM:
        return Reason.BAD_GEOMETRY, "position is absurd"
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    faults = (row @ row - 1, column @ column - 1, row @ column)
    if max(abs(fault) for fault in faults) > 2 * DIRECTION_TOLERANCE:
        return Reason.BAD_GEOMETRY, "directions are not unit vectors at a right angle"
    return None


def axes(header: Header) -> tuple[Array, Array, Array]:
    """Unit vectors: along a row, down a column, normal (LPS); of an image with a good plane."""
    values = np.array(header.orientation)
    row = values[:3] / np.linalg.norm(values[:3])
    column = values[3:] - (values[3:] @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def heights_mm(headers: Sequence[Header]) -> Array:
    """Position of each slice along the common normal, mm."""
    return np.array([header.position_mm for header in headers]) @ axes(headers[0])[2]


def same_plane_groups(heights: Array) -> list[list[int]]:
    """Indices by plane, in ascending order of height; more than one in a group: repeated."""
    order = np.argsort(heights, kind="stable")
    groups: list[list[int]] = []
    for i in order.tolist():
        if groups and heights[i] - heights[groups[-1][0]] <= SAME_POSITION_MM:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def fit_grid(headers: Sequence[Header]) -> Grid:
    """The grid of at least two slices in ascending order.

    Raises:
        Refusal: slices are missing, or the steps are uneven, or not on one line.
    """
    row, column, normal = axes(headers[0])
    positions = np.array([header.position_mm for header in headers])
    heights = positions @ normal
    n_steps = len(headers) - 1
    step = (positions[-1] - positions[0]) / n_steps
    step_mm = float(step @ normal)
    require_even(heights)
    off_line = positions - (positions[0] + np.arange(n_steps + 1)[:, None] * step)
    if np.linalg.norm(off_line, axis=1).max() > 2 * _tolerance(step_mm):
        raise Refusal("slices are shifted against each other", code=Reason.BAD_GEOMETRY)
    tilt = float(np.degrees(np.arccos(np.clip(step_mm / np.linalg.norm(step), -1, 1))))
    if step_mm > MAX_STEP_MM or tilt > MAX_TILT_DEGREES:
        message = f"steps of {step_mm:.1f} mm at {tilt:.0f} degrees to the normal"
        raise Refusal(message, code=Reason.BAD_GEOMETRY)
    between_rows, between_columns = headers[0].pixel_spacing_mm or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([row * between_columns, column * between_rows, step, positions[0]], 1)
    return Grid(affine, step_mm, tilt, normal)


def require_even(heights: Array) -> None:
    """Raise a Refusal that names the gaps (mm along the normal) unless all steps are equal."""
    steps = np.diff(heights)
    mean = float((heights[-1] - heights[0]) / len(steps))
    straight = heights[0] + mean * np.arange(len(heights))
    if np.abs(heights - straight).max() <= _tolerance(mean):
        return
    usual = float(np.median(steps))
    multiples = np.rint(steps / usual)
    gaps = np.flatnonzero(multiples > 1)
    if len(gaps) and np.abs(steps - multiples * usual).max() <= 2 * _tolerance(usual):
        missing = int((multiples - 1).sum())
        raise Refusal(
            f"{missing} of {len(heights) + missing} slices missing, steps of {usual:.4g} mm, "
            f"gaps after {_mm(heights[gaps])} mm",
            code=Reason.MISSING_SLICES,
        )
    uneven = np.flatnonzero(np.abs(steps - usual) > _tolerance(usual))
    raise Refusal(
        f"steps from {steps.min():.4g} to {steps.max():.4g} mm, the usual is {usual:.4g} mm; "
        f"uneven after {_mm(heights[uneven])} mm",
        code=Reason.NON_UNIFORM_SPACING,
    )


def _tolerance(step_mm: float) -> float:
    """Scanners round positions to 0.1 mm at worst; a tenth of a step is no missing slice."""
    return float(np.clip(0.1 * abs(step_mm), 0.06, 0.25))


def _mm(values: Array) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:6])
    return shown + (f" and {len(values) - 6} more" if len(values) > 6 else "")
