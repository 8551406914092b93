"""A patient's findings at the time of one of their scans.

They depend on (seed, patient) and the day alone, so that the same person can be seen by two
scanners, and again later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headct.errors import UsageError
from headct.phantom.anatomy import Anatomy
from headct.phantom.course import aged
from headct.phantom.draw import draw_lesions, fracture_at
from headct.phantom.findings import Collection, Diffuse, Lesion, VentricularBlood
from headct.phantom.presence import draw_presence, require_findings
from headct.phantom.profile import DIFFUSE, DRAWN_FINDINGS, PhantomPreset
from headct.phantom.sizing import sized
from headct.phantom.volumes import quantile

FINDINGS, DAYS = 12, 15
"""Last words of the seeds of these draws."""
SHORTEST_DAYS, LONGEST_DAYS = 1.0, 400.0
"""Between two scans of a patient."""


def scan_day(seed: int, patient: int, scan: int) -> int:
    """Days from a patient's first scan to another: many come back soon, some after a year."""
    rng = np.random.default_rng([seed, patient, DAYS])
    gaps = np.exp(rng.uniform(np.log(SHORTEST_DAYS), np.log(LONGEST_DAYS), scan))
    return int(np.ceil(gaps).sum())


def draw_findings(
    preset: PhantomPreset,
    seed: int,
    patient: int,
    anatomy: Anatomy,
    days: float = 0.0,
    wanted: Mapping[str, bool | float] | None = None,
) -> tuple[Lesion, ...]:
    """All lesions of a patient, as they are some days after the first scan.

    Args:
        preset: prevalences and severity.
        seed: of the archive.
        patient: number.
        anatomy: of the patient.
        days: since the first scan.
        wanted: where given, exactly these findings: True, or a severity above 0.

    Raises:
        UsageError: an unknown finding, an impossible severity, or a day before the first scan.
    """
    if not 0 <= days < np.inf:
        raise UsageError(f"no scan was made on day {days}", remedy="count from the first scan, 0")
    rng = np.random.default_rng([seed, patient, FINDINGS])
    present = draw_presence(rng, preset, anatomy.age_years, anatomy.sex)
    if wanted is not None:
        present = require_findings(wanted)
    drawn: list[Lesion] = []
    for finding in present:
        own = np.random.default_rng([seed, patient, FINDINGS, DRAWN_FINDINGS.index(finding)])
        spread = preset.diffuse_severity if finding in DIFFUSE else preset.severity
        severity = quantile(float(own.random()), spread)
        asked = True if wanted is None else wanted[finding]
        if not isinstance(asked, bool):
            severity = float(asked)
        drawn += draw_lesions(own, finding, severity, anatomy)
    later = [aged(lesion, days) for lesion in _fracture_under_epidural(rng, drawn, anatomy)]
    return _with_extent([lesion for lesion in later if lesion is not None], anatomy)


def _fracture_under_epidural(
    rng: np.random.Generator, lesions: list[Lesion], anatomy: Anatomy
) -> list[Lesion]:
    """A fracture in a patient with an epidural haematoma lies under it: it has torn the artery."""
    for edh in lesions:
        if isinstance(edh, Collection) and edh.finding == "edh":
            place, side = edh.centre, edh.side
            return [
                fracture_at(rng, m.severity, place, side, anatomy) if m.finding == "fracture" else m
                for m in lesions
            ]
    return lesions


def _with_extent(lesions: list[Lesion], anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Haemorrhages get their extent in the brain as the diffuse findings have changed it."""
    brain = anatomy.brain
    for lesion in lesions:
        if isinstance(lesion, Diffuse):
            brain = lesion.applied(brain)
    for place, lesion in enumerate(lesions):
        if isinstance(lesion, VentricularBlood):
            lesions[place] = sized(lesion, anatomy, brain)
            brain = lesions[place].applied(brain)
    return tuple(
        m if isinstance(m, VentricularBlood) else sized(m, anatomy, brain) for m in lesions
    )
