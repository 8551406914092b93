"""Who has what: prevalence, age, sex, and what comes together."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from headct.errors import UsageError
from headct.phantom.anatomy import AGE_YEARS
from headct.phantom.findings import Lesion
from headct.phantom.patient import draw_findings
from headct.phantom.plan import plan_studies
from headct.phantom.presence import EXCLUDES, Sex, draw_presence
from headct.phantom.profile import (
    DRAWN_FINDINGS,
    PhantomPreset,
    Prevalence,
    load_preset,
    load_site,
)
from headct.phantom.render import draw_scan, render_scan
from headct.phantom.scan import draw_anatomy

N = 6000
Person = tuple[float, Sex, tuple[str, ...]]


def people(preset: PhantomPreset, n: int) -> list[Person]:
    rng = np.random.default_rng(0)
    mean, sd, low, high = AGE_YEARS
    found: list[Person] = []
    for _ in range(n):
        age = float(np.clip(rng.normal(mean, sd), low, high))
        sex: Sex = "F" if rng.random() < 0.5 else "M"
        found.append((age, sex, draw_presence(rng, preset, age, sex)))
    return found


@lru_cache
def base() -> list[Person]:
    return people(load_preset("base"), N)


def share(finding: str, among: list[Person]) -> float:
    return float(np.mean([finding in present for *_, present in among]))


def test_prevalences_are_as_asked() -> None:
    for finding, asked in load_preset("base").prevalence.model_dump().items():
        assert abs(share(finding, base()) - asked) < 0.016, finding
    assert 0.3 < np.mean([not present for *_, present in base()]) < 0.42


def test_prevalences_of_another_preset_are_as_asked() -> None:
    preset = PhantomPreset(prevalence=Prevalence(edh=0.02, ivh=0.5, atrophy=0.4, oedema=0.3))
    drawn = people(preset, 2500)
    for finding, asked in preset.prevalence.model_dump().items():
        assert abs(share(finding, drawn) - asked) < 0.035, finding


def test_labels_of_rendered_scans_have_the_prevalences() -> None:
    preset, site = load_preset("base"), load_site("hospital-a")
    affine = np.diag([7.0, 7.0, 7.0, 1.0])
    affine[:3, 3] = (-77, -98, -84)
    rows = []
    for patient in range(200):
        scan = render_scan(draw_scan(preset, site, 4, patient), (24, 29, 25), affine, masks=False)
        rows.append([scan.truth["labels"][finding] for finding in DRAWN_FINDINGS])
    shares = np.mean(rows, axis=0)
    asked = np.array([getattr(preset.prevalence, finding) for finding in DRAWN_FINDINGS])
    assert np.abs(shares - asked).max() < 0.065, dict(zip(DRAWN_FINDINGS, shares, strict=True))
    assert abs(np.mean(shares - asked)) < 0.015


def test_a_person_has_nothing_that_another_excludes() -> None:
    for *_, present in base():
        for finding, others in EXCLUDES.items():
            assert finding not in present or not set(others) & set(present)


@pytest.mark.parametrize(
    ("finding", "higher_in"),
    [("atrophy", "old"), ("infarct", "old"), ("sdh", "old"), ("edh", "young"), ("sdh", "M")],
)
def test_age_and_sex_matter(finding: str, higher_in: str) -> None:
    groups = {
        "old": [p for p in base() if p[0] >= 70],
        "young": [p for p in base() if p[0] < 45],
        "M": [p for p in base() if p[1] == "M"],
        "F": [p for p in base() if p[1] == "F"],
    }
    other = {"old": "young", "young": "old", "M": "F"}[higher_in]
    assert share(finding, groups[higher_in]) > 1.3 * share(finding, groups[other])


@pytest.mark.parametrize(
    ("finding", "cause"),
    [("fracture", "edh"), ("ivh", "iph"), ("hydrocephalus", "ivh"), ("sah", "iph"), ("iph", "sah")],
)
def test_findings_come_together(finding: str, cause: str) -> None:
    having = [p for p in base() if cause in p[2]]
    others = [p for p in base() if cause not in p[2]]
    assert share(finding, having) > 1.7 * share(finding, others)


def test_an_epidural_haematoma_has_a_fracture_in_more_than_half() -> None:
    assert 0.5 < share("fracture", [p for p in base() if "edh" in p[2]]) < 0.85


def test_nothing_and_all_prevalence() -> None:
    nothing = PhantomPreset.model_validate({"prevalence": dict.fromkeys(DRAWN_FINDINGS, 0.0)})
    assert {present for *_, present in people(nothing, 100)} == {()}
    always = PhantomPreset.model_validate({"prevalence": {"edh": 1.0}})
    assert share("edh", people(always, 100)) == 1


def test_findings_that_exclude_each_other_cannot_both_be_common() -> None:
    asked = {"atrophy": 0.9, "oedema": 0.9}
    preset = PhantomPreset.model_validate({"prevalence": asked})
    with pytest.raises(UsageError, match=r"prevalence\.oedema: 0.9 .* atrophy or hydrocephalus"):
        plan_studies(preset)
    possible = PhantomPreset.model_validate({"prevalence": asked | {"oedema": 0.05}})
    assert abs(share("oedema", people(possible, 2000)) - 0.05) < 0.02


@lru_cache
def patients_with(finding: str) -> list[tuple[Lesion, ...]]:
    preset = load_preset("base")
    found = []
    for patient in range(60):
        anatomy = draw_anatomy(np.random.default_rng([1, patient]), preset)
        found.append(draw_findings(preset, 1, patient, anatomy, 0, {finding: 0.6}))
    return found


@pytest.mark.parametrize("finding", ["sdh", "iph", "infarct", "mass"])
def test_some_patients_have_several_lesions(finding: str) -> None:
    counts = np.array([len(lesions) for lesions in patients_with(finding)])
    assert 0.08 < np.mean(counts > 1) < 0.5
    assert counts.max() == 2 if finding == "sdh" else counts.max() > 2


def test_two_subdurals_lie_on_two_sides() -> None:
    both = [lesions for lesions in patients_with("sdh") if len(lesions) == 2]
    assert all({m.side for m in lesions} == {"left", "right"} for lesions in both)


def test_subdurals_are_of_all_ages() -> None:
    stages = {m.stage for lesions in patients_with("sdh") for m in lesions}
    assert stages == {"acute", "iso", "chronic", "mixed"}
