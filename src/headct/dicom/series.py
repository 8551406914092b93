"""One series -> its volumes: which slices belong together, in what order, and why not."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.dicom.geometry import (
    TILT_FROM_DEGREES,
    Grid,
    check_plane,
    fit_grid,
    heights_mm,
    same_plane_groups,
)
from headct.dicom.grouping import split_by_grid
from headct.dicom.header import FileOutcome, Header
from headct.dicom.kind import check_kind, check_values, is_lossy, is_reformat, is_spectral
from headct.dicom.neighbours import strange_slices
from headct.dicom.pixels import read_stored, to_hu
from headct.dicom.reasons import Reason
from headct.errors import Refusal

MIN_SLICES = 8
MAX_STACK_VOXELS = 1 << 29

DAMAGE = frozenset(
    {Reason.TRUNCATED, Reason.TOO_LARGE, Reason.NO_PIXEL_DATA, Reason.BAD_PIXEL_FORMAT}
)
"""Faults of a file that belongs to the scan; other kinds of image merely share its UID."""


@dataclass(frozen=True)
class SeriesFiles:
    """The images under one SeriesInstanceUID, wherever they lie.

    Attributes:
        headers: image records, in any order.
        damaged: files of the series that cannot be read; with any, no volume is built.
        n_possible: unreadable files that may be of this series, or of another beside it.
    """

    headers: tuple[Header, ...] = field(repr=False)
    damaged: tuple[FileOutcome, ...] = ()
    n_possible: int = 0

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID; identifying, for pseudonyms only."""
        return self.headers[0].series_uid

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID; identifying, for pseudonyms only."""
        return self.headers[0].study_uid

    @property
    def patient_key(self) -> str:
        """What names the patient: PatientID and issuer, else the study; for pseudonyms only."""
        return self.headers[0].patient_key or f"study\0{self.study_uid}"

    @property
    def n_files(self) -> int:
        """Files of the series, damaged ones included."""
        return len({header.path for header in self.headers}) + len(self.damaged)


@dataclass(frozen=True)
class StackPlan:
    """Slices that make one volume, sorted by position; the pixels are not read yet.

    Attributes:
        headers: one per slice, ascending along the normal.
        grid: where the voxels are.
        flags: recorded warnings.
        part: tells volumes under one series UID apart; empty where there is one.
    """

    headers: tuple[Header, ...] = field(repr=False)
    grid: Grid
    flags: tuple[Reason, ...]
    part: str = field(default="", repr=False)


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume on its native grid.

    Attributes:
        hu: int16 [slice row column]; padding and all below air is AIR_HU.
        plan: slices, geometry and flags that were known before the pixels were read.
        flags: recorded warnings, those of the plan included.
    """

    hu: NDArray[np.int16]
    plan: StackPlan
    flags: tuple[Reason, ...]

    @property
    def affine_lps(self) -> NDArray[np.float64]:
        """4x4, (column, row, slice, 1) -> DICOM patient LPS mm; sheared for a tilted gantry."""
        return self.plan.grid.affine_lps

    @property
    def header(self) -> Header:
        """The record of the first slice."""
        return self.plan.headers[0]


def read_stacks(series: SeriesFiles, *, min_slices: int = MIN_SLICES) -> list[Stack | Refusal]:
    """Every volume of a series, or the reason why there is none; never raises for bad input."""
    return [_read_or_refuse(plan) for plan in plan_stacks(series, min_slices=min_slices)]


def _read_or_refuse(plan: StackPlan | Refusal) -> Stack | Refusal:
    if isinstance(plan, Refusal):
        return plan
    try:
        return read_stack(plan)
    except Refusal as refusal:
        return refusal


def read_stack(plan: StackPlan) -> Stack:
    """Read the pixels of a planned volume.

    Raises:
        Refusal: a file ends early or does not decode; one bad slice refuses the volume.
    """
    first = plan.headers[0]
    hu = np.empty((len(plan.headers), first.rows, first.columns), np.int16)
    junk = False
    for header, out in zip(plan.headers, hu, strict=True):
        junk |= read_stored(header, out)
        to_hu(out, header)
    flags = list(plan.flags)
    if junk:
        flags.append(Reason.UNUSED_BITS)
    if strange_slices(hu):
        flags.append(Reason.SUSPECT_SLICE)
    return Stack(hu, plan, tuple(flags))


def plan_stacks(series: SeriesFiles, *, min_slices: int = MIN_SLICES) -> list[StackPlan | Refusal]:
    """Sort the images of a series into volumes by their headers.

    Images of another kind (localizers, screen copies) give one refusal per reason; a damaged file
    or slice refuses every volume of the series, since none is known to be whole.

    Args:
        series: all images under one series UID.
        min_slices: fewer make no volume.
    """
    try:
        _require_one_patient(series.headers)
        images, refusals = _split_off_other_kinds(series.headers)
        if not images:
            return list(refusals)
        _require_whole(images, series.damaged)
        images, n_duplicates = _without_copies(images)
    except Refusal as refusal:
        return [refusal]
    groups = split_by_grid(images)
    plans = [_plan(group, len(groups) > 1, n_duplicates, min_slices) for group in groups]
    if series.n_possible:
        plans = [_with_flag(plan, Reason.POSSIBLE_LOSS) for plan in plans]
    return [*plans, *refusals]


def _with_flag(plan: StackPlan | Refusal, flag: Reason) -> StackPlan | Refusal:
    return plan if isinstance(plan, Refusal) else replace(plan, flags=(*plan.flags, flag))


def _require_one_patient(headers: Sequence[Header]) -> None:
    if len({header.patient for header in headers}) > 1:
        raise Refusal("several patients under one series UID", code=Reason.MIXED_PATIENTS)
    if len({header.study_uid for header in headers}) > 1:
        raise Refusal("several studies under one series UID", code=Reason.CONFLICT)


def _split_off_other_kinds(headers: Sequence[Header]) -> tuple[list[Header], list[Refusal]]:
    images: list[Header] = []
    others: dict[Reason, list[str]] = defaultdict(list)
    for header in headers:
        fault = check_kind(header)
        if fault is None or (fault[0] in DAMAGE and header.modality == "CT"):
            images.append(header)
        else:
            others[fault[0]].append(fault[1])
    refusals = [
        Refusal(_counted(len(notes), len(headers), notes[0]), code=reason)
        for reason, notes in sorted(others.items())
    ]
    return images, refusals


def _require_whole(images: Sequence[Header], damaged: Sequence[FileOutcome]) -> None:
    if damaged:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(f.reason for f in damaged).items())
        message = f"{len(damaged)} files of the series are unreadable ({kinds})"
        raise Refusal(message, code=Reason.DAMAGED_MEMBER)
    for check in (check_kind, check_values, check_plane):
        faults = [fault for header in images if (fault := check(header)) is not None]
        if faults:
            reason, note = faults[0]
            raise Refusal(_counted(len(faults), len(images), note), code=reason)


def _counted(n: int, n_all: int, note: str) -> str:
    images = "the only image" if n == n_all == 1 else f"{n} of {n_all} images"
    return f"{images}: {note}" if note else images


def _without_copies(images: Sequence[Header]) -> tuple[list[Header], int]:
    """One record per image UID; a UID with two contents is a conflict."""
    by_uid: dict[Any, list[Header]] = defaultdict(list)
    for i, header in enumerate(images):
        by_uid[(header.image_uid, header.frame) if header.image_uid else i].append(header)
    for copies in by_uid.values():
        if len(copies) > 1 and len({_content(header) for header in copies}) > 1:
            raise Refusal("one image UID with different contents", code=Reason.CONFLICT)
    return [copies[0] for copies in by_uid.values()], len(images) - len(by_uid)


def _content(header: Header) -> tuple[Any, ...]:
    """What must agree for two images to be the same one."""
    stored = np.empty((header.rows, header.columns), np.int16)
    read_stored(header, stored)
    place = (header.position_mm, header.orientation, header.pixel_spacing_mm)
    digest = hashlib.sha256(stored.tobytes()).digest()
    return place, header.slope, header.intercept, stored.shape, digest


def _plan(
    images: list[Header], is_part: bool, n_duplicates: int, min_slices: int
) -> StackPlan | Refusal:
    try:
        slices = _one_per_plane(images)
        n_duplicates += len(images) - len(slices)
        if len(slices) == 1:
            return Refusal("one slice", code=Reason.SINGLE_SLICE)
        grid = fit_grid(slices)
    except Refusal as refusal:
        return refusal
    n, first = len(slices), slices[0]
    if n < min_slices:
        return Refusal(f"{n} slices, fewer than {min_slices}", code=Reason.TOO_FEW_SLICES)
    if n * first.rows * first.columns > MAX_STACK_VOXELS:
        return Refusal(f"{n} x {first.rows} x {first.columns} voxels", code=Reason.TOO_LARGE)
    flags = tuple(_flags(slices, grid, is_part, n_duplicates))
    return StackPlan(tuple(slices), grid, flags, _part_name(slices) if is_part else "")


def _one_per_plane(images: Sequence[Header]) -> list[Header]:
    """Ascending, with exact duplicates dropped."""
    slices: list[Header] = []
    for group in same_plane_groups(heights_mm(images)):
        if len(group) > 1 and len({_content(images[i])[1:] for i in group}) > 1:
            message = f"{len(group)} different images at one position"
            raise Refusal(message, code=Reason.DUPLICATE_CONFLICT)
        slices.append(min((images[i] for i in group), key=lambda h: (h.image_uid, str(h.path))))
    return slices


def _flags(
    slices: Sequence[Header], grid: Grid, is_part: bool, n_duplicates: int
) -> Iterable[Reason]:
    conditions = {
        Reason.SPLIT_SERIES: is_part,
        Reason.DUPLICATES_DROPPED: n_duplicates > 0,
        Reason.NO_PATIENT_ID: not slices[0].patient_key,
        Reason.GANTRY_TILT: grid.tilt_degrees >= TILT_FROM_DEGREES,
        Reason.NOT_AXIAL: not grid.is_axial,
        Reason.REFORMATTED: any(is_reformat(header) for header in slices),
        Reason.SPECTRAL: any(is_spectral(header) for header in slices),
        Reason.LOSSY: any(is_lossy(header) for header in slices),
    }
    return (reason for reason, holds in conditions.items() if holds)


def _part_name(slices: Sequence[Header]) -> str:
    """Depends on the images alone, not on their order or number of parts."""
    return min(f"{header.image_uid}#{header.frame}" for header in slices)
