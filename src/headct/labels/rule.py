"""Which diagnoses of a patient say that a scan has a finding, has not, or cannot say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from headct.config import Config, load_recipe
from headct.labels.vocabulary import Value, find_name

System = Literal["icd9", "icd10"]
SHAPES: dict[System, re.Pattern[str]] = {
    "icd9": re.compile(r"(\d{3}|V\d{2}|E\d{3})(\.?\d{1,2})?"),
    "icd10": re.compile(r"[A-Z]\d[0-9A-Z](\.?[0-9A-Z]{1,4})?[+*!]?"),
}
"""With the dot in its place or without it; ICD-10-GM marks some codes at the end."""
IN_WINDOW = "code-in-window"
TOO_FEW = "too-few-dates"
PRIOR = "prior-diagnosis"
GREY = "grey-zone"
NO_RECORD = "no-record"
NO_FOLLOW_UP = "no-follow-up"
FOLLOWED = "follow-up-without-code"
IMPLIED = "implied"

Reason = str
"""One of the above, or the name of an exclusion."""


def _in_order(days: tuple[int, int]) -> tuple[int, int]:
    if days[0] > days[1]:
        raise ValueError(f"the first day {days[0]} is after the last {days[1]}")
    return days


Days = Annotated[tuple[int, int], AfterValidator(_in_order)]
"""First and last day, counted from the scan."""
Span = Annotated[int, Field(ge=0)]


class Codes(Config):
    """Beginnings of codes, with or without the dot."""

    icd9: tuple[str, ...] = ()
    icd10: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _checked(self) -> Codes:
        systems: tuple[System, ...] = ("icd9", "icd10")
        for system in systems:
            bad = [code for code in getattr(self, system) if plain_code(system, code) is None]
            if bad:
                raise ValueError(f"no codes of {system}: {', '.join(bad)}")
        if not self.icd9 + self.icd10:
            raise ValueError("no codes")
        return self

    def take(self, event: Event) -> bool:
        """Whether a diagnosis is one of these."""
        codes = self.icd9 if event.system == "icd9" else self.icd10
        return event.code.startswith(beginnings(codes))


class Exclusion(Codes):
    """Diagnoses that leave open whether the finding is there."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    days: Days
    blocks: Literal["present", "absent", "both"] = "both"


class FindingRule(Codes):
    """How one finding is decided; see the comment in rules/ten-findings.toml."""

    days: Days
    prior_days: Span = 0
    grey_days: Span = 0
    min_dates: Annotated[int, Field(ge=1)] = 1
    follow_up_days: Span | None = None
    exclude: tuple[Exclusion, ...] = ()


class Rules(Config):
    """Rules for some findings."""

    follow_up_days: Span
    findings: dict[str, FindingRule]

    @model_validator(mode="after")
    def _known(self) -> Rules:
        unknown = [name for name in self.findings if find_name(name) != name]
        if unknown or not self.findings:
            raise ValueError(
                f"not in the vocabulary of findings: {', '.join(unknown) or 'none given'}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Event:
    """One diagnosis; `day` is that of the calendar, `code` has no dot."""

    day: int
    system: System
    code: str


@dataclass(slots=True)
class History:
    """What is known of one patient: diagnoses that a rule asks for, and the last contact."""

    events: list[Event] = field(default_factory=list)
    last_day: int = 0


@cache
def beginnings(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Codes in capitals without their dots, for `str.startswith`."""
    return tuple(code.upper().replace(".", "", 1) for code in codes)


def plain_code(system: System, code: str) -> str | None:
    """A code in capitals without its dot; None where it is none of that system."""
    text = code.upper()
    return text.replace(".", "").rstrip("+*!") if SHAPES[system].fullmatch(text) else None


def load_rules(name: str | Path, overrides: Sequence[str] = ()) -> Rules:
    """Rules from a TOML file, or those that come with headct by their name.

    Raises:
        UsageError: no such rules, or faults in them, all listed at once.
    """
    return load_recipe(name, Rules, overrides, builtin="headct.labels.rules")


def decide(
    rule: FindingRule, history: History | None, day: int, follow_up_days: int
) -> tuple[Value, Reason]:
    """The label of a scan for one finding, and which part of the rule decided.

    Args:
        rule: of the finding.
        history: of the patient; None where nothing is recorded.
        day: of the scan.
        follow_up_days: where the rule has none of its own.
    """
    if history is None:
        return None, NO_RECORD
    for exclusion in rule.exclude:
        if exclusion.blocks != "absent" and _dates(exclusion, history, day, exclusion.days):
            return None, exclusion.name
    first, last = rule.days
    dates = _dates(rule, history, day, rule.days)
    if dates:
        enough = len(dates) >= rule.min_dates
        return (1, IN_WINDOW) if enough else (None, TOO_FEW)
    if _dates(rule, history, day, (first - rule.prior_days, first - 1)):
        return None, PRIOR
    if _dates(rule, history, day, (last + 1, last + rule.grey_days)):
        return None, GREY
    for exclusion in rule.exclude:
        if exclusion.blocks == "absent" and _dates(exclusion, history, day, exclusion.days):
            return None, exclusion.name
    needed = follow_up_days if rule.follow_up_days is None else rule.follow_up_days
    return (0, FOLLOWED) if history.last_day - day >= needed else (None, NO_FOLLOW_UP)


def _dates(codes: Codes, history: History, day: int, days: tuple[int, int]) -> set[int]:
    """Days on which one of the codes was recorded within a window."""
    first, last = day + days[0], day + days[1]
    return {e.day for e in history.events if first <= e.day <= last and codes.take(e)}
