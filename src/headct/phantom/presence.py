"""Which findings a patient has: by why they came, by age and sex, and by what brings what.

Shares over all patients are the preset's, whatever the dependences: the baseline of each finding is
solved so that they come out.

Source:
    Weights are rough figures of epidemiology. Co-occurrence: 192 scans of BHSD and the majority of
    three reads of 491 scans of CQ500 (a fracture in 85 % of epidurals, a subarachnoid bleed in
    54-59 % of those with blood in the ventricles).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headct.errors import UsageError
from headct.phantom.anatomy import AGE_YEARS
from headct.phantom.findings import MAX_SEVERITY
from headct.phantom.profile import DRAWN_FINDINGS, DrawnFinding, PhantomPreset, Prevalence

Sex = Literal["F", "M"]

CAUSES: dict[DrawnFinding, dict[DrawnFinding, float]] = {
    "fracture": {"edh": 0.6, "sdh": 0.1},
    "iph": {"fracture": 0.15},
    "sah": {"sdh": 0.12, "iph": 0.2, "fracture": 0.1},
    "ivh": {"iph": 0.35, "sah": 0.25},
    "hydrocephalus": {"ivh": 0.3, "sah": 0.1},
    "infarct": {"sah": 0.05},
    "oedema": {"sah": 0.05, "infarct": 0.06, "edh": 0.06},
}
"""Finding -> cause -> chance that the cause brings it."""

EXCLUDES: dict[DrawnFinding, tuple[DrawnFinding, ...]] = {
    "oedema": ("atrophy", "hydrocephalus"),
}
"""A swollen brain has neither wide ventricles nor wide sulci."""

REASONS: tuple[tuple[float, dict[DrawnFinding, float]], ...] = (
    (0.30, {"edh": 3.0, "sdh": 2.0, "fracture": 3.0, "sah": 1.3, "oedema": 1.3, "mass": 0.4}),
    (0.35, {"iph": 1.8, "infarct": 2.2, "ivh": 1.3, "sah": 1.3, "edh": 0.3, "fracture": 0.3}),
    (0.15, {"mass": 3.0, "oedema": 1.5, "hydrocephalus": 1.8, "edh": 0.3, "fracture": 0.4}),
    (0.20, {"atrophy": 2.0, "infarct": 0.8, "edh": 0.3, "iph": 0.6, "sah": 0.6}),
)
"""Why a patient is scanned (accident, sudden deficit, headache and seizure, slow decline): its
share, and the odds of findings with it."""

ODDS_PER_DECADE: dict[DrawnFinding, float] = {
    "edh": 0.75,
    "sdh": 1.35,
    "sah": 0.95,
    "iph": 1.2,
    "ivh": 1.1,
    "infarct": 1.4,
    "mass": 1.05,
    "hydrocephalus": 1.05,
    "fracture": 0.85,
    "atrophy": 1.6,
    "oedema": 0.8,
}
"""Odds of a finding change by this factor with every ten years of age."""
ODDS_OF_MEN: dict[DrawnFinding, float] = {
    "edh": 1.8,
    "sdh": 1.8,
    "sah": 0.75,
    "iph": 1.3,
    "fracture": 1.8,
}
"""Odds in men over those in women."""

ORDER: tuple[DrawnFinding, ...] = (
    "atrophy",
    "edh",
    "sdh",
    "fracture",
    "iph",
    "sah",
    "ivh",
    "hydrocephalus",
    "infarct",
    "mass",
    "oedema",
)
"""Causes come before what they bring."""
MOST_BROUGHT = 0.8
"""Share of a finding that its causes may bring."""
_N_AGES = 12


def draw_presence(
    rng: np.random.Generator, preset: PhantomPreset, age_years: float, sex: Sex
) -> tuple[DrawnFinding, ...]:
    """Which findings a patient of this age and sex has, in the order of the labels."""
    reason = int(rng.choice(len(REASONS), p=[share for share, _ in REASONS]))
    solved = _solved(preset.prevalence)
    present: set[DrawnFinding] = set()
    for finding in ORDER:
        baseline, bringing = solved[finding]
        drawn = rng.random() < _chance(baseline, log_odds(finding, reason, age_years, sex))
        causes = {c: chance for c, chance in CAUSES.get(finding, {}).items() if c in present}
        brought = [rng.random() < bringing * chance for chance in causes.values()]
        if (drawn or any(brought)) and not present.intersection(EXCLUDES.get(finding, ())):
            present.add(finding)
    return tuple(f for f in DRAWN_FINDINGS if f in present)


def log_odds(finding: DrawnFinding, reason: int, age_years: float, sex: Sex) -> float:
    """Of a finding in a patient, over those of the average patient."""
    odds = REASONS[reason][1].get(finding, 1.0)
    odds *= ODDS_PER_DECADE[finding] ** ((age_years - AGE_YEARS[0]) / 10)
    return float(np.log(odds * (ODDS_OF_MEN.get(finding, 1.0) if sex == "M" else 1.0)))


def _chance(baseline: float, log_odds: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(baseline + np.asarray(log_odds), -60, 60)))


@lru_cache(maxsize=8)
def _solved(prevalence: Prevalence) -> dict[DrawnFinding, tuple[float, float]]:
    """Baseline log odds of each finding, for which its share over all patients is as asked, and a
    factor on the chances of its causes: below 1 where they alone would bring too many.

    The chance of every set of findings, [patients of one kind, sets], is followed exactly.
    """
    kinds, share = _kinds_of_patients()
    n_sets = 1 << len(ORDER)
    chance = np.zeros((len(kinds), n_sets))
    chance[:, 0] = share
    sets = np.arange(n_sets)
    solved: dict[DrawnFinding, tuple[float, float]] = {}
    for place, finding in enumerate(ORDER):
        asked = getattr(prevalence, finding)
        seen = sets[: 1 << place]  # later findings are not drawn yet
        before = chance[:, : len(seen)]
        possible = 1 - _any_of(EXCLUDES.get(finding, ()), seen)
        most = float((before * possible).sum())
        if asked > most + 1e-6:
            others = " or ".join(EXCLUDES[finding])
            raise UsageError(
                f"prevalence.{finding}: {asked:g} of the patients cannot have it, since those with "
                f"{others} never do",
                remedy=f"at most {most:.2g}, or make {others} rarer",
            )
        too_many = (before * _brought(finding, seen, 1.0) * possible).sum()
        bringing = min(1.0, MOST_BROUGHT * asked / max(float(too_many), 1e-9))
        spared = 1 - _brought(finding, seen, bringing)
        odds = np.array([log_odds(finding, *kind) for kind in kinds])[:, None]
        low, high = -40.0, 40.0
        for _ in range(50):
            middle = 0.5 * (low + high)
            here = (1 - (1 - _chance(middle, odds)) * spared) * possible
            low, high = (middle, high) if (before * here).sum() < asked else (low, middle)
        baseline = 40.0 if asked == 1 else low
        solved[finding] = baseline, bringing
        here = (1 - (1 - _chance(baseline, odds)) * spared) * possible
        chance[:, len(seen) : 2 * len(seen)] = before * here
        chance[:, : len(seen)] = before * (1 - here)
    return solved


def _kinds_of_patients() -> tuple[list[tuple[int, float, Sex]], NDArray[np.float64]]:
    """Reason, age and sex, and the share of patients with them."""
    mean, sd, low, high = AGE_YEARS
    nodes, weights = np.polynomial.hermite_e.hermegauss(_N_AGES)
    ages = np.clip(mean + sd * nodes, low, high)
    sexes: tuple[Sex, Sex] = ("F", "M")
    kinds = [(r, float(age), sex) for r in range(len(REASONS)) for age in ages for sex in sexes]
    shares = [
        share * weight / weights.sum() / 2
        for share, _ in REASONS
        for weight in weights
        for _ in sexes
    ]
    return kinds, np.array(shares)


def _brought(finding: DrawnFinding, sets: NDArray[np.int64], factor: float) -> NDArray[np.float64]:
    """Chance that any of its causes, where present, brings a finding."""
    spared = np.ones(len(sets))
    for cause, chance in CAUSES.get(finding, {}).items():
        spared *= 1 - factor * chance * _any_of((cause,), sets)
    return 1 - spared


def _any_of(findings: tuple[DrawnFinding, ...], sets: NDArray[np.int64]) -> NDArray[np.float64]:
    mask = sum(1 << ORDER.index(finding) for finding in findings)
    return ((sets & mask) > 0).astype(float)


def require_prevalence(prevalence: Prevalence) -> None:
    """Check that patients can have their findings as often as asked.

    Raises:
        UsageError: findings that exclude each other leave too few patients for one.
    """
    _solved(prevalence)


def require_findings(wanted: Mapping[str, bool | float]) -> tuple[DrawnFinding, ...]:
    """The findings asked for.

    Raises:
        UsageError: one is unknown, or is midline shift, which only follows from others; or a
            severity is negative or above `MAX_SEVERITY`.
    """
    for name, severity in wanted.items():
        if name not in DRAWN_FINDINGS:
            raise UsageError(
                f"no finding {name!r} can be planted", remedy=f"one of: {', '.join(DRAWN_FINDINGS)}"
            )
        if not 0 <= severity <= MAX_SEVERITY:
            raise UsageError(
                f"no {name} has a severity of {severity}",
                remedy=f"give a quantile of size, 0 to 1, at most {MAX_SEVERITY}",
            )
    return tuple(f for f in DRAWN_FINDINGS if wanted.get(f))
