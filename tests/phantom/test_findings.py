"""Findings: how often, how large, where, and what they do to the brain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headct.errors import UsageError
from headct.phantom.anatomy import draw_anatomy, vault_distance
from headct.phantom.draw import draw_lesions
from headct.phantom.findings import (
    Bleed,
    Collection,
    Mass,
    MassEffect,
    displacement,
    midline_shift_mm,
)
from headct.phantom.lesions import DURA_MM
from headct.phantom.profile import DRAWN_FINDINGS, FINDINGS, PhantomPreset, load_preset, load_site
from headct.phantom.render import Rendered, ScanSpec, draw_scan, render_scan

SITE = load_site("hospital-a")
STILL = PhantomPreset(
    rotation_factor=0, shift_factor=0, noise_factor=0, scale_sd=0, deformation_mm=0
)
SHAPE = (72, 92, 76)
SPACING_MM = 2.0
AFFINE = np.diag([SPACING_MM] * 3 + [1.0])
AFFINE[:3, 3] = (-64, -92, -75)
PLACED = tuple(f for f in DRAWN_FINDINGS if f not in ("atrophy", "oedema"))


def rendered(finding: str, patient: int = 1, severity: float = 0.8) -> tuple[ScanSpec, Rendered]:
    spec = draw_scan(STILL, SITE, 5, patient, findings={finding: severity})
    return spec, render_scan(spec, SHAPE, AFFINE, scanner=False)


def rendered_alone(finding: str, severity: float = 0.8) -> tuple[ScanSpec, Rendered]:
    """The first patient in whom there is one lesion of this kind."""
    for patient in range(1, 20):
        spec = draw_scan(STILL, SITE, 5, patient, findings={finding: severity})
        if len(spec.lesions) == 1:
            return rendered(finding, patient, severity)
    raise AssertionError("nobody has one lesion alone")


def coordinates(step_mm: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = [np.arange(-95, 95, step_mm)] * 3
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return x, y, z


def test_a_bleed_has_the_volume_of_its_ellipsoid() -> None:
    checked = 0
    for patient in range(6):
        spec, scan = rendered("iph", patient)
        lesion = spec.lesions[0]
        assert isinstance(lesion, Bleed)
        if lesion.location != "basal ganglia":
            continue
        formula_ml = 4 / 3 * np.pi * np.prod(lesion.radii) / 1000
        assert scan.truth["volume_ml"]["iph"] == pytest.approx(formula_ml, rel=0.1)
        assert scan.masks["iph"].sum() * SPACING_MM**3 / 1000 == pytest.approx(formula_ml, rel=0.1)
        checked += 1
    assert checked


@pytest.mark.parametrize("finding", ["edh", "sdh"])
def test_a_collection_has_the_volume_of_its_formula(finding: str) -> None:
    spec, scan = rendered_alone(finding, severity=0.7)
    (lesion,) = spec.lesions
    assert isinstance(lesion, Collection)
    x, y, z = coordinates()
    vault, *_ = vault_distance(*(c.astype(np.float32) for c in (x, y, z)))
    rho = np.sqrt(sum((c - c0) ** 2 for c, c0 in zip((x, y, z), lesion.centre, strict=True)))
    height = lesion.thickness_mm * (1 - (rho / lesion.radius_mm) ** lesion.exponent)
    high_up = z > -20
    inside = (vault < -DURA_MM) & (-vault < height) & high_up
    if finding == "sdh":
        inside &= x * (1 if lesion.side == "right" else -1) > 2
    from_formula_ml = inside.sum() / 1000
    planes = np.arange(SHAPE[0]) * SPACING_MM + AFFINE[0, 3] > -20
    measured_ml = scan.masks[finding][planes].sum() * SPACING_MM**3 / 1000
    assert measured_ml == pytest.approx(from_formula_ml, rel=0.1)


@pytest.mark.parametrize("finding", PLACED)
def test_a_mask_lies_in_its_tissue_and_on_its_side(finding: str) -> None:
    spec, scan = rendered_alone(finding)
    normal = render_scan(replace(spec, lesions=()), SHAPE, AFFINE, scanner=False).hu
    mask = scan.masks[finding]
    assert mask.any()
    under = normal[mask]
    if finding == "fracture":
        assert np.median(under) > 300, "in bone"
    else:
        assert np.mean(under < 250) > 0.97, "inside the skull"
        assert under.min() > -150, "not in air"
    side = spec.lesions[0].side
    if side in ("left", "right") and finding != "ivh":
        x_mm = np.argwhere(mask)[:, 2] * SPACING_MM + AFFINE[2, 3]
        share_right = np.mean(x_mm > 0)
        assert share_right > 0.8 if side == "right" else share_right < 0.2


@pytest.mark.parametrize("finding", ["edh", "iph", "ivh", "mass", "infarct"])
def test_a_lesion_has_its_hu(finding: str) -> None:
    spec, scan = rendered_alone(finding, severity=1.0)
    lesion = spec.lesions[0]
    inner = scan.masks[finding]
    for axis in range(3):
        inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
    hu = scan.hu[inner] if inner.any() else scan.hu[scan.masks[finding]]
    if isinstance(lesion, Mass) and lesion.core_share:
        off = np.minimum(abs(hu - lesion.hu), abs(hu - lesion.core_hu))
        assert np.median(off) < 4
    else:
        assert abs(np.median(hu) - lesion.hu) < 4


def test_hu_of_findings_are_as_the_literature_says() -> None:
    preset = load_preset("base").model_copy(update={"hu_variation": 0.0})
    anatomy = draw_anatomy(np.random.default_rng(0), preset)
    ranges = {"edh": (50, 75), "iph": (50, 74), "ivh": (45, 70), "sah": (48, 64), "sdh": (14, 70)}
    for finding, (low, high) in ranges.items():
        for seed in range(60):
            for lesion in draw_lesions(np.random.default_rng(seed), finding, 0.5, anatomy):
                assert low - 0.1 <= lesion.hu - 0.7 * anatomy.brain.fresh_blood_hu <= high + 0.1


def test_midline_shift_is_away_from_the_lesion_and_labelled_by_its_size() -> None:
    from_right = (MassEffect((60.0, 0.0, 10.0), 15.0, 60.0),)
    assert midline_shift_mm(from_right) < -3
    mirror = (MassEffect((-60.0, 0.0, 10.0), 15.0, 60.0),)
    assert midline_shift_mm(mirror) == pytest.approx(-midline_shift_mm(from_right))
    assert midline_shift_mm(from_right + mirror) == pytest.approx(0, abs=1e-9)
    _, large = rendered("edh", severity=1.0)
    _, small = rendered("edh", severity=0.0)
    assert large.truth["labels"]["midline_shift"] == 1
    assert abs(small.truth["midline_shift_mm"]) < abs(large.truth["midline_shift_mm"])


def test_the_septum_moves_by_the_midline_shift() -> None:
    effects = (MassEffect((60.0, 0.0, 10.0), 15.0, 60.0),)
    shift = midline_shift_mm(effects)
    arrived = np.array([[shift, 8.0, 10.0]])
    came_from = arrived + displacement(effects, arrived)
    assert came_from[0, 0] == pytest.approx(0, abs=0.3)


def test_wide_and_narrow_ventricles() -> None:
    volumes = {}
    for finding in ("hydrocephalus", "oedema", "atrophy"):
        spec = draw_scan(STILL, SITE, 5, 7, findings={finding: 0.8})
        volumes[finding] = spec.brain.ventricle / spec.anatomy.brain.ventricle
    assert volumes["hydrocephalus"] > 1.6
    assert 1.2 < volumes["atrophy"] < 1.7
    assert volumes["oedema"] < 0.6


def test_labels_name_all_findings_and_only_those_planted() -> None:
    _, scan = rendered("sah")
    assert tuple(scan.truth["labels"]) == FINDINGS
    assert [f for f, label in scan.truth["labels"].items() if label] == ["sah"]


def test_a_finding_outside_the_picture_is_not_labelled() -> None:
    spec, scan = rendered("fracture")
    assert scan.truth["labels"]["fracture"] == 1
    low = AFFINE.copy()
    low[0, 3] = -120
    below = render_scan(spec, (20, *SHAPE[1:]), low)
    assert below.truth["labels"]["fracture"] == 0
    assert "fracture" not in below.truth["findings"]


def test_an_unknown_finding_is_refused() -> None:
    with pytest.raises(UsageError, match="aneurysm"):
        draw_scan(STILL, SITE, 0, 0, findings={"aneurysm": True})
    with pytest.raises(UsageError, match="midline_shift"):
        draw_scan(STILL, SITE, 0, 0, findings={"midline_shift": True})


@pytest.mark.parametrize("severity", [-0.1, 1.3, float("nan")])
def test_an_impossible_severity_is_refused(severity: float) -> None:
    with pytest.raises(UsageError, match="severity") as error:
        draw_scan(STILL, SITE, 0, 0, findings={"iph": severity})
    assert "0 to 1" in error.value.remedy


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf")])
def test_a_day_before_the_first_scan_is_refused(days: float) -> None:
    with pytest.raises(UsageError, match="day"):
        draw_scan(STILL, SITE, 0, 0, days=days)


def test_truth_tells_all_lesions_of_a_finding() -> None:
    for patient in range(1, 40):
        spec = draw_scan(STILL, SITE, 5, patient, findings={"sdh": 0.8})
        if len(spec.lesions) == 2:
            break
    scan = render_scan(spec, SHAPE, AFFINE, scanner=False)
    row = scan.truth["findings"]["sdh"]
    larger = max(spec.lesions, key=lambda lesion: lesion.volume_ml)
    assert (row["n_lesions"], row["side"], row["stage"]) == (2, "both", larger.stage)
    planned = sum(lesion.volume_ml for lesion in spec.lesions)
    assert scan.truth["volume_ml"]["sdh"] == pytest.approx(planned, rel=0.1)
    x_mm = np.argwhere(scan.masks["sdh"])[:, 2] * SPACING_MM + AFFINE[2, 3]
    assert 0.05 < np.mean(x_mm > 0) < 0.95


def test_csf_is_what_is_in_the_picture() -> None:
    spec = draw_scan(STILL, SITE, 5, 1, findings={})
    scan = render_scan(spec, SHAPE, AFFINE, scanner=False)
    upper = AFFINE.copy()
    upper[0, 3] += 80
    half = render_scan(spec, SHAPE, upper, scanner=False)
    assert 60 < scan.truth["csf_ml"] < 450
    assert half.truth["csf_ml"] < 0.8 * scan.truth["csf_ml"]
    assert half.truth["ventricles_ml"] < 0.8 * scan.truth["ventricles_ml"]
    wide = draw_scan(STILL, SITE, 5, 1, findings={"hydrocephalus": 0.8})
    ill = render_scan(wide, SHAPE, AFFINE, scanner=False)
    assert ill.truth["ventricles_ml"] > 1.8 * scan.truth["ventricles_ml"]
    assert ill.truth["evans_index"] > scan.truth["evans_index"]
