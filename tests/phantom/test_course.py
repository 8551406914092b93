"""What becomes of a finding by a patient's next scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headct.phantom.course import aged, infarct_stage
from headct.phantom.findings import Collection, Diffuse, Fracture, Infarct, Mass
from headct.phantom.patient import LONGEST_DAYS, scan_day
from headct.phantom.profile import PhantomPreset, load_site
from headct.phantom.render import Rendered, ScanSpec, draw_scan, render_scan

STILL = PhantomPreset(
    rotation_factor=0, shift_factor=0, noise_factor=0, scale_sd=0, deformation_mm=0
)
SITE = load_site("hospital-a")
SHAPE = (48, 61, 50)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = (-64, -92, -75)
PATIENT = 3


def seen(finding: str, days: float, severity: float = 0.8) -> tuple[ScanSpec, Rendered]:
    spec = draw_scan(STILL, SITE, 5, PATIENT, findings={finding: severity}, days=days)
    return spec, render_scan(spec, SHAPE, AFFINE, scanner=False)


def truth(finding: str, days: float) -> tuple[float, float, dict[str, Any]]:
    """Volume in ml, median HU and truth, 0 where it is gone."""
    _, scan = seen(finding, days)
    if not scan.truth["labels"][finding]:
        return 0.0, 0.0, scan.truth
    mask = scan.masks[finding]
    hu = float(np.median(scan.hu[mask])) if mask.any() else 0.0
    return scan.truth["volume_ml"][finding], hu, scan.truth


@pytest.mark.parametrize("finding", ["edh", "iph", "ivh", "sah"])
def test_blood_is_resorbed_and_less_dense(finding: str) -> None:
    (ml_0, hu_0, _), (ml_7, hu_7, _), (ml_30, hu_30, _) = (truth(finding, d) for d in (0, 7, 30))
    assert ml_0 > ml_7 > ml_30
    assert hu_0 > hu_7 + 2 > hu_30
    assert ml_30 < (0.6 if finding in ("edh", "iph") else 0.02) * ml_0


def acute_subdural() -> Collection:
    spec = draw_scan(STILL, SITE, 5, 0, findings={"sdh": 0.8})
    for patient in range(30):
        spec = draw_scan(STILL, SITE, 5, patient, findings={"sdh": 0.8})
        lesion = spec.lesions[0]
        if lesion.stage == "acute" and isinstance(lesion, Collection):
            return replace(lesion, hu=60.0, age_days=0.0)
    raise AssertionError("nobody has an acute subdural haematoma")


def test_a_subdural_becomes_iso_and_hypodense() -> None:
    fresh = acute_subdural()
    states = [aged(fresh, days) for days in (0, 7, 14, 30)]
    assert [m.stage for m in states if m] == ["acute", "iso", "iso", "chronic"]
    hu = [m.hu for m in states if m]
    assert hu[0] == pytest.approx(60)
    assert 45 < hu[1] < 56
    assert 34 < hu[2] < 44
    assert 15 < hu[3] < 28
    volumes = [m.volume_ml for m in states if m]
    assert volumes[3] > 0.95 * volumes[0], "it takes months to go"
    gone = aged(fresh, 330)
    assert gone is None


def test_a_mixed_subdural_has_a_level() -> None:
    for patient in range(80):
        spec = draw_scan(STILL, SITE, 5, patient, findings={"sdh": 0.9})
        lesion = spec.lesions[0]
        if lesion.stage == "mixed" and len(spec.lesions) == 1:
            break
    assert isinstance(lesion, Collection)
    scan = render_scan(spec, SHAPE, AFFINE, scanner=False)
    y_mm = np.argwhere(scan.masks["sdh"])[:, 1] * 3.0 + AFFINE[1, 3]
    hu = scan.hu[scan.masks["sdh"]]
    below, above = (hu[y_mm < lesion.level_mm - 4], hu[y_mm > lesion.level_mm + 4])
    assert np.median(below) - np.median(above) > 15


def test_an_infarct_goes_through_its_stages() -> None:
    spec, _ = seen("infarct", 0)
    fresh = spec.lesions[0]
    assert isinstance(fresh, Infarct)
    fresh = replace(fresh, age_days=0.15, share=1.0, hu=0.0, swelling=1.0)
    states = [aged(fresh, days) for days in (0, 1, 4, 90)]
    found = [m for m in states if isinstance(m, Infarct)]
    assert [m.stage for m in found] == ["hyperacute", "acute", "subacute", "chronic"]
    assert [m.stage for m in found] == [infarct_stage(m.age_days) for m in found]
    contrast = [(28 - m.hu) * m.share for m in found]
    assert contrast[0] < 1 < contrast[1] < contrast[2] < contrast[3]
    assert found[2].swelling > found[1].swelling > found[0].swelling >= 0 > found[3].swelling
    assert found[2].mass_effect()[0].push_mm > 0 > found[3].mass_effect()[0].push_mm


def test_a_tumour_doubles_and_pushes_more() -> None:
    (now, first), (later, second) = seen("mass", 0), seen("mass", 150)
    ratio = second.truth["volume_ml"]["mass"] / first.truth["volume_ml"]["mass"]
    assert ratio == pytest.approx(2, rel=0.12)
    assert all(isinstance(m, Mass) for m in later.lesions)
    pushes = [sum(e.push_mm for e in spec.mass_effects) for spec in (now, later)]
    assert pushes[1] > 1.1 * pushes[0]


def test_a_fracture_heals_and_its_swelling_goes_down_first() -> None:
    states = [seen("fracture", days)[0].lesions for days in (0, 30, 180)]
    widths = [m.width_mm for (m,) in states if isinstance(m, Fracture)]
    assert widths[0] > widths[1] > 2 * widths[2] / 1.5
    assert all(m.swelling_mm == 0 for m in states[1] if isinstance(m, Fracture))
    assert seen("fracture", 700)[1].truth["labels"]["fracture"] == 0


def test_oedema_resolves_and_atrophy_goes_on() -> None:
    sulci = [seen("oedema", days)[1].truth["csf_ml"] for days in (0, 7, 30)]
    assert sulci[0] < sulci[1] < sulci[2]
    assert seen("oedema", 30)[1].truth["labels"]["oedema"] == 0
    young, old = (seen("atrophy", days)[0].lesions[0] for days in (0, 3650))
    assert isinstance(young, Diffuse)
    assert isinstance(old, Diffuse)
    assert old.ventricle > young.ventricle > 1


def test_ventricles_are_drained() -> None:
    wide, drained, normal = (
        draw_scan(STILL, SITE, 5, PATIENT, findings=findings, days=days).brain.ventricle
        for findings, days in (({"hydrocephalus": 0.9}, 0), ({"hydrocephalus": 0.9}, 60), ({}, 0))
    )
    assert wide > drained > normal


def test_midline_shift_follows_the_lesion() -> None:
    shifts = [abs(seen("edh", days)[1].truth["midline_shift_mm"]) for days in (0, 30, 200)]
    assert shifts[0] > 1.3 * shifts[1]
    assert shifts[2] == 0


def test_days_between_scans() -> None:
    days = np.array([[scan_day(0, patient, scan) for scan in range(3)] for patient in range(200)])
    assert np.all(days[:, 0] == 0)
    assert np.all(np.diff(days, axis=1) >= 1)
    assert days[:, 1].max() <= LONGEST_DAYS
    assert np.mean(days[:, 1] <= 30) > 0.4, "many come back within a month"
    spec = draw_scan(STILL, SITE, 0, 7, scan=2)
    assert spec.days == scan_day(0, 7, 2)


def test_what_is_there_does_not_depend_on_what_else_is() -> None:
    alone = draw_scan(STILL, SITE, 5, PATIENT, findings={"iph": 0.5}).lesions
    beside = draw_scan(STILL, SITE, 5, PATIENT, findings={"iph": 0.5, "mass": 0.5}).lesions
    assert set(alone) <= set(beside)
