"""The written rule of what is taken: a TOML file, or the defaults below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from headct.config import Config, load_recipe
from headct.dicom.header import Header
from headct.dicom.reasons import Reason, Status
from headct.volume.check import Fault

REASONS = {str(reason): reason for reason in Reason}
"""Reason by its code."""

Verdict = Literal["refuse", "flag", "accept"]

DECIDABLE = frozenset(reason for reason in Reason if reason.status == Status.FLAGGED) | {
    Reason.IMPLAUSIBLE_HU,
    Reason.NOT_HEAD,
    Reason.NO_BRAIN,
    Reason.NOT_AXIAL,
    Reason.OTHER_BODY_PART,
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
    body_parts: tuple[str, ...] = (
        *("HEAD", "BRAIN", "SKULL", "HEADNECK", "NECKHEAD", "HEADBRAIN", "CRANIUM", "ORBIT"),
        *("SINUS", "PNS", "FACE", "FACIALBONES", "TBONE", "IAC", "PITUITARY", "PLASTIC"),
    )
    """BodyPartExamined without spaces and signs; an empty tag leaves it to the content."""
    bone_kernels: tuple[str, ...] = (
        r"BONE|EDGE|SHARP|LUNG",
        r"^[BHUJ][RH]?[678]\d",
        r"^FC(3|8)\d",
        r"^Y[BCDE]$",
    )
    """Patterns of kernel names that are flagged as bone kernels."""
    thick_above_mm: float = 6.0
    """mm between slices; more is flagged as thick."""
    child_below_years: float = 18.0
    """Younger patients are flagged."""
    min_slices: int = 8
    """Fewer slices make no volume."""

    @field_validator("refuse", "flag", "accept")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        known = {str(reason) for reason in DECIDABLE}
        unknown = sorted(set(codes) - known)
        if unknown:
            raise ValueError(f"not a reason that can be decided: {unknown}; one of {sorted(known)}")
        return codes

    @field_validator("bone_kernels")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a pattern: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _once(self) -> Criteria:
        codes = [*self.refuse, *self.flag, *self.accept]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise ValueError(f"in more than one of refuse, flag and accept: {twice}")
        return self

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
    """Criteria from a TOML file; the defaults where there is none.

    Raises:
        UsageError: no such file, an unknown key or reason, or a bad value.
    """
    return Criteria() if path is None else load_recipe(path, Criteria, builtin="headct.ingest")


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
    found: list[Fault] = []
    part = re.sub(r"[^A-Z]", "", first.body_part.upper())
    if part and part not in criteria.body_parts:
        found.append((Reason.OTHER_BODY_PART, ""))
    if first.contrast.strip():
        found.append((Reason.CONTRAST, ""))
    if any(re.search(pattern, first.kernel.upper()) for pattern in criteria.bone_kernels):
        found.append((Reason.BONE_KERNEL, first.kernel))
    if first.age_years is not None and first.age_years < criteria.child_below_years:
        found.append((Reason.CHILD, ""))
    return found + check_step(step_mm, criteria)


def check_step(step_mm: float, criteria: Criteria) -> list[Fault]:
    """Whether the slices are thicker than the criteria like."""
    if step_mm <= criteria.thick_above_mm:
        return []
    return [(Reason.THICK_SLICES, f"{step_mm:.1f} mm from slice to slice")]
