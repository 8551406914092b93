"""The written rule of what is taken: a TOML file, or the defaults below."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from headct.config import Config, load_recipe, to_toml
from headct.dicom.header import Header
from headct.dicom.reasons import Reason, Status
from headct.ingest.criteria_table import TABLE_SUFFIXES, TableRow, fits_table, read_table
from headct.ingest.descriptions import (
    BONE,
    CONE_BEAM,
    HEADS,
    OTHERS,
    POST_MORTEM,
    WITH_CONTRAST,
    WITHOUT_CONTRAST,
    says,
    speaks_of_contrast,
    texts_of,
)
from headct.volume.check import Fault

STEP_ROUNDING_MM = 0.01
REASONS = {str(reason): reason for reason in Reason}
"""Reason by its code."""


def _require_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a pattern: {error}") from error
    return patterns


Patterns = Annotated[tuple[str, ...], AfterValidator(_require_patterns)]
"""Regular expressions; they are searched for in capitals without accents."""

Verdict = Literal["refuse", "flag", "accept"]

DECIDABLE = frozenset(reason for reason in Reason if reason.status == Status.FLAGGED) | {
    Reason.IMPLAUSIBLE_HU,
    Reason.NOT_HEAD,
    Reason.NO_BRAIN,
    Reason.NOT_AXIAL,
    Reason.OTHER_BODY_PART,
    Reason.NOT_IN_TABLE,
}
"""Reasons about a volume that could be taken all the same; the others leave nothing to take."""


class Criteria(Config):
    """Which reasons refuse, flag or are passed over; without a word the reason's own status holds.

    By default a skull without a brain (a phantom) is flagged, so that quality-control scans come
    through.
    """

    refuse: tuple[str, ...] = ()
    """Reason codes that refuse a series."""
    flag: tuple[str, ...] = (Reason.NO_BRAIN,)
    """Reason codes that are recorded as a warning."""
    accept: tuple[str, ...] = ()
    """Reason codes that are passed over."""
    body_parts: Patterns = HEADS
    """Patterns of BodyPartExamined that are a head; they go before `other_body_parts`."""
    other_body_parts: Patterns = OTHERS
    """Patterns of BodyPartExamined that are none; any other text leaves it to the content."""
    with_contrast: Patterns = WITH_CONTRAST
    """Patterns of descriptions, protocol names and contrast elements that mean contrast agent."""
    without_contrast: Patterns = WITHOUT_CONTRAST
    """Patterns that mean none; they go before `with_contrast`."""
    bone_kernels: Patterns = (
        r"BONE|EDGE|SHARP|LUNG",
        r"^[BHUJQT]?[RVHFUPC]?[678]\d",
        r"^FC(3|8)\d",
        r"^Y[BCDE]$",
    )
    """Patterns of kernel names that are flagged as bone kernels."""
    bone_words: Patterns = BONE
    """Patterns of the description of a series without a kernel that mean a bone kernel."""
    post_mortem: Patterns = POST_MORTEM
    """Patterns of descriptions that mean a post-mortem scan."""
    cone_beam: Patterns = CONE_BEAM
    """Patterns of descriptions and models that mean a cone-beam scanner."""
    thick_above_mm: Annotated[float, Field(gt=0)] = 6.0
    """mm between slices; more is flagged as thick."""
    child_below_years: Annotated[float, Field(ge=0, le=130)] = 18.0
    """Younger patients are flagged."""
    min_slices: Annotated[int, Field(ge=2)] = 8
    """Fewer slices make no volume."""
    keep: Literal["thinnest", "closest", "all"] = "thinnest"
    """Which one of the reconstructions of an acquisition is taken; `all` keeps every one."""
    closest_mm: Annotated[float, Field(gt=0)] = 5.0
    """mm between slices that `closest` means."""
    table: tuple[TableRow, ...] = ()
    """Rows of study description, kVp and kernel; where there are any, a series must fit one."""

    @field_validator("refuse", "flag", "accept")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        known = {str(reason) for reason in DECIDABLE}
        unknown = sorted(set(codes) - known)
        if unknown:
            raise ValueError(f"not a reason that can be decided: {unknown}; one of {sorted(known)}")
        return codes

    @model_validator(mode="after")
    def _once(self) -> Criteria:
        codes = [*self.refuse, *self.flag, *self.accept]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise ValueError(f"in more than one of refuse, flag and accept: {twice}")
        return self

    @property
    def hash(self) -> str:
        """Short hash of all values; it goes into the manifest."""
        return hashlib.sha256(to_toml(self).encode()).hexdigest()[:12]

    def verdict(self, reason: Reason) -> Verdict:
        """What a reason leads to."""
        if reason in self.refuse:
            return "refuse"
        if reason in self.flag:
            return "flag"
        if reason in self.accept:
            return "accept"
        return "flag" if reason.status == Status.FLAGGED else "refuse"


@dataclass(frozen=True)
class Decision:
    """What became of a volume: the reason that refused it, or the flags that it carries."""

    refused: Fault | None
    flags: tuple[Fault, ...]


def load_criteria(path: Path | None) -> Criteria:
    """Criteria from a TOML file or a table in CSV; the defaults where there is neither.

    Raises:
        UsageError: no such file, an unknown key or reason, or a bad value.
    """
    if path is None:
        return Criteria()
    if path.suffix.lower() in TABLE_SUFFIXES:
        return Criteria(table=read_table(path))
    return load_recipe(path, Criteria, builtin="headct.ingest")


def default_criteria() -> str:
    """The criteria that hold where none are given, as a TOML file with comments."""
    return resources.files("headct.ingest").joinpath("criteria.toml").read_text("utf-8")


def decide(faults: Iterable[Fault], criteria: Criteria) -> Decision:
    """Apply the criteria; the first reason that refuses is the one that is named."""
    flags: dict[Reason, Fault] = {}
    for reason, message in faults:
        verdict = criteria.verdict(reason)
        if verdict == "refuse":
            return Decision((reason, message), ())
        if verdict == "flag":
            flags.setdefault(reason, (reason, message))
    return Decision(None, tuple(flags.values()))


def check_header(headers: Sequence[Header], step_mm: float, criteria: Criteria) -> list[Fault]:
    """What the header says against a plain adult non-contrast head CT, as reason codes."""
    first = headers[0]
    age = first.age_years
    conditions = {
        Reason.NOT_IN_TABLE: bool(criteria.table) and not fits_table(first, criteria.table),
        Reason.OTHER_BODY_PART: _is_other_part(first, criteria),
        Reason.CONTRAST: any(has_contrast(header, criteria) for header in _one_of_each(headers)),
        Reason.POST_MORTEM: says(texts_of(first), criteria.post_mortem),
        Reason.CONE_BEAM: says([*texts_of(first), first.model], criteria.cone_beam),
        Reason.CHILD: age is not None and age < criteria.child_below_years,
    }
    found = [(reason, "") for reason, holds in conditions.items() if holds]
    if is_bone(first, criteria):
        found.append((Reason.BONE_KERNEL, first.kernel_shown))
    return found + check_step(step_mm, criteria)


def is_bone(header: Header, criteria: Criteria) -> bool:
    """Whether a series was reconstructed with a bone kernel."""
    if header.kernel:
        return says([header.kernel], criteria.bone_kernels)
    return says([header.series_description], criteria.bone_words)


def has_contrast(header: Header, criteria: Criteria) -> bool:
    """Whether contrast agent was given, as far as the header says it."""
    return speaks_of_contrast(header, criteria.with_contrast, criteria.without_contrast)


def _is_other_part(header: Header, criteria: Criteria) -> bool:
    part = [header.body_part]
    return not says(part, criteria.body_parts) and says(part, criteria.other_body_parts)


def _one_of_each(headers: Sequence[Header]) -> Iterable[Header]:
    """One header for each way in which contrast is written."""
    return {(h.contrast, h.series_description): h for h in headers}.values()


def check_step(step_mm: float, criteria: Criteria) -> list[Fault]:
    """Whether the slices are thicker than the criteria like."""
    if step_mm <= criteria.thick_above_mm + STEP_ROUNDING_MM:
        return []
    return [(Reason.THICK_SLICES, f"{step_mm:.1f} mm from slice to slice")]
