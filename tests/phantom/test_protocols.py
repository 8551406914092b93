"""Tube voltage, dose, bone kernels, contrast medium, metal, arteries and partial coverage."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from headct.ingest.criteria import Criteria
from headct.ingest.descriptions import says
from headct.phantom.acquisition import Contrast, dose_noise, draw_acquisition
from headct.phantom.anatomy import draw_anatomy, vault_point
from headct.phantom.metal import ANEURYSMS, RAYS, Implant, Streak, add_streaks, draw_implants
from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset, load_preset, load_site
from headct.phantom.render import acquisition_grid, canonical_affine, draw_scan, render_scan
from headct.phantom.scan import ScanSpec
from headct.phantom.scanner import Grid, draw_noise
from headct.phantom.spectrum import bone_factor, iodine_factor
from headct.phantom.study import rendered_series
from headct.phantom.vessels import BASILAR
from headct.volume.preprocessing import PRESETS

SITE = load_site("hospital-a")
TRAUMA = load_site("hospital-c")
STILL = PhantomPreset(
    rotation_factor=0, shift_factor=0, noise_factor=0, scale_sd=0, deformation_mm=0
)
SHAPE = (70, 90, 80)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-62, -90, -79)


def quiet(patient: int = 1, **protocol: object) -> ScanSpec:
    """A head in the middle, seen by a scanner without faults but for those asked for."""
    spec = draw_scan(STILL, SITE, 3, patient, findings={})
    clean = {"gain": 1.0, "offset_hu": 0.0, "cupping_hu": 0.0, "streak_hu": 0.0, "ghost": None}
    clean |= {"slice_thickness_mm": 1.0, **protocol}
    return replace(spec, acquisition=replace(spec.acquisition, **clean))


def hu_of(spec: ScanSpec) -> np.ndarray:
    return render_scan(spec, SHAPE, AFFINE, masks=False).hu


def at(hu: np.ndarray, x: float, y: float, z: float, half: int = 0) -> np.ndarray:
    index = np.rint((np.array([z, y, x]) - AFFINE[:3, 3]) / 2).astype(int)
    return hu[tuple(slice(i - half, i + half + 1) for i in index)]


def test_bone_is_denser_at_lower_voltage_and_brain_is_not() -> None:
    normal, low = hu_of(quiet(kvp=120)), hu_of(quiet(kvp=80))
    bone = normal > 700
    ratio = np.median(low[bone] / normal[bone])
    assert ratio == pytest.approx(bone_factor(80), abs=0.03)
    brain = (normal > 20) & (normal < 45)
    assert abs(np.median(low[brain].astype(float) - normal[brain])) <= 2
    assert bone_factor(140) < 1 < bone_factor(100) < bone_factor(80) < iodine_factor(80)


def test_noise_goes_with_one_over_the_root_of_the_dose() -> None:
    assert dose_noise(120, 250) == 1
    assert dose_noise(120, 62.5) == pytest.approx(2)
    assert dose_noise(80, 250) > 1.5
    scanner = SITE.scanners[0].model_copy(update={"mas": (62.0, 62.0)})
    thrifty = SITE.model_copy(update={"scanners": (scanner,)})
    full = SITE.model_copy(update={"scanners": SITE.scanners[:1]})
    for seed in range(5):
        noisy, calm = (
            draw_acquisition(np.random.default_rng(seed), site, load_preset("base"))
            for site in (thrifty, full)
        )
        assert noisy.noise_sd_hu == pytest.approx(calm.noise_sd_hu * (250 / 62) ** 0.5)


def test_a_bone_kernel_overshoots_at_edges_and_has_more_noise() -> None:
    soft = quiet()
    bone = quiet(bone=True, kernel_mm=-1.0, overshoot=2.0)
    fine = AFFINE.copy()
    fine[:3, :3] *= 0.5
    fine[0, 3], fine[1, 3], fine[2, 3] = 20, -60, -80
    smooth, sharp = (render_scan(s, (4, 120, 160), fine, masks=False).hu for s in (soft, bone))
    assert sharp.max() > smooth.max() + 150
    inside = (smooth > 0) & (smooth < 60)
    assert sharp[inside].min() < smooth[inside].min() - 50
    noisy = [replace(s.acquisition, noise_sd_hu=3.0) for s in (soft, bone)]
    low, high = (draw_noise((20, 60, 60), (3.0, 0.5, 0.5), a).std() for a in noisy)
    assert high > 1.5 * low
    drawn = [draw_scan(load_preset("base"), TRAUMA, 0, n).acquisition for n in range(120)]
    assert 0.05 < np.mean([a.bone for a in drawn]) < 0.22
    assert all((a.kernel == "Hr69") == a.bone for a in drawn)
    assert all(a.kernel_mm < 0 and a.overshoot > 1 for a in drawn if a.bone)


def test_contrast_medium_shows_vessels_sinuses_and_choroid() -> None:
    plain, enhanced = hu_of(quiet()), hu_of(quiet(contrast=Contrast(120.0, "")))
    more = enhanced.astype(float) - plain
    # torcular, between the inner table and the tentorium
    x, y, z = vault_point((0.0, -1.0, 0.6))
    assert at(more, x, y + 3, z - 1).max() > 80, "superior sagittal sinus"
    assert at(more, *_middle_of_basilar(), half=1).max() > 50
    for side in (-1, 1):
        assert at(more, side * 19, -35, 9, half=1).max() > 20, "choroid plexus"
    assert 0 < np.median(at(more, 24, -16, 19, half=2)) < 6, "white matter"
    assert np.median(at(more, 12, -10, 5, half=1)) > np.median(at(more, 24, -16, 19, half=2))


def _middle_of_basilar() -> tuple[float, float, float]:
    a, b, _ = BASILAR
    return tuple(float(v) for v in np.add(a, b) / 2)  # type: ignore[return-value]


def test_a_tumour_takes_up_contrast_medium() -> None:
    spec = replace(quiet(), lesions=draw_scan(STILL, SITE, 3, 4, findings={"mass": 0.9}).lesions)
    plain = render_scan(spec, SHAPE, AFFINE, scanner=False)
    told = replace(spec.acquisition, contrast=Contrast(120.0, ""))
    seen = render_scan(replace(spec, acquisition=told), SHAPE, AFFINE, scanner=False)
    mask = plain.masks["mass"]
    assert (seen.hu[mask].astype(float) - plain.hu[mask]).max() > 25
    np.testing.assert_array_equal(seen.masks["mass"], mask)


def test_the_header_says_contrast_in_the_share_of_cases_asked_for() -> None:
    drawn = [draw_scan(load_preset("base"), TRAUMA, 0, n).acquisition.contrast for n in range(400)]
    given = [c.told for c in drawn if c is not None]
    assert len(given) / 400 == pytest.approx(TRAUMA.contrast_fraction, abs=0.06)
    assert np.mean([t != "" for t in given]) == pytest.approx(0.7, abs=0.12)
    assert set(given) == {"agent", "series", "study", ""}


def test_what_the_header_says_of_contrast_is_understood() -> None:
    preset = load_preset("tiny", ['sites=["hospital-c"]', "faults=false", "max_matrix=32"])
    wanted = {"agent", "series", "study", "", None}
    for study in plan_studies(preset) * 2:
        spec = draw_scan(preset, TRAUMA, preset.seed, study.patient.number, study.scan)
        told = spec.acquisition.contrast.told if spec.acquisition.contrast else None
        if told not in wanted:
            continue
        wanted.remove(told)
        series, _, _ = rendered_series(preset, study)
        image = dcmread(BytesIO(series.files()[0]), stop_before_pixels=True)
        assert image.Exposure == round(spec.acquisition.mas)
        assert (image.get("ContrastBolusAgent", "") != "") == (told == "agent")
        texts = [image.SeriesDescription, image.StudyDescription]
        speaks = says(texts, Criteria().with_contrast, but=Criteria().without_contrast)
        assert speaks == (told in ("series", "study"))
    assert wanted <= {"agent", "series", "study", ""} - {""}, f"not met: {wanted}"


def test_metal_is_the_brightest_and_streaks_through_its_slices_alone() -> None:
    coil = Implant("coil", ANEURYSMS[2], (4.0, 4.0, 4.0))
    plain, metal = hu_of(quiet()), hu_of(replace(quiet(metal_hu=60.0), implants=(coil,)))
    x, y, z = coil.centre
    assert at(metal, x, y, z).item() == 3071
    change = np.abs(metal.astype(float) - plain)
    slices = np.rint((np.array([z, z + 30]) - AFFINE[0, 3]) / 2).astype(int)
    brain = (plain > 10) & (plain < 60)
    assert change[slices[0]][brain[slices[0]]].std() > 8
    assert change[slices[1]].max() == 0


def test_two_pieces_of_metal_have_a_dark_band_between_them() -> None:
    grid = Grid.of(
        (3, 60, 60), np.array([[3, 0, 0, -3], [0, 2, 0, -59], [0, 0, 2, -59], [0, 0, 0, 1.0]])
    )
    total = np.zeros((3, 60, 60), np.float32)
    for phases in np.random.default_rng(0).uniform(0, 2 * np.pi, (60, 2, len(RAYS))):
        pair = [
            Streak((side * 20.0, 0.0, 0.0), 2.0, 60.0, tuple(phase))
            for side, phase in zip((-1, 1), phases, strict=True)
        ]
        add_streaks(total, (grid.superior, grid.anterior, grid.right), 0.0, tuple(pair))
    mean = total / 60
    assert mean[1, 28:31, 24:36].mean() < -40
    assert abs(mean[1, 5:15, 24:36].mean()) < 5


def test_a_patient_has_the_same_metal_wherever_he_is_scanned() -> None:
    n_metal = 0
    for patient in range(40):
        home = draw_scan(STILL, TRAUMA, 0, patient)
        away = draw_scan(STILL, SITE, 0, patient, home=TRAUMA)
        assert home.implants == away.implants
        n_metal += bool(home.implants)
        assert not draw_scan(STILL, SITE, 0, patient).implants
    assert 10 < n_metal < 32
    drawn = [draw_implants(np.random.default_rng(n), TRAUMA) for n in range(600)]
    kinds = [implant.kind for found in drawn for implant in found]
    assert {"clip", "coil", "filling"} == set(kinds)
    assert 0.02 < sum(kind != "filling" for kind in kinds) / 600 < 0.09


def test_blood_in_arteries_follows_the_haematocrit() -> None:
    preset = load_preset("base")
    people = [draw_anatomy(np.random.default_rng(n), preset) for n in range(300)]
    arteries = [p.brain.arteries for p in people]
    assert all(33 <= a.hu <= 52 for a in arteries)
    assert np.corrcoef([a.hu for a in arteries], [p.brain.sinus_hu for p in people])[0, 1] > 0.7
    dense = [a for a in arteries if a.dense_side]
    assert 0.02 < len(dense) / 300 < 0.11
    assert all(a.dense_hu >= a.hu + 12 for a in dense)
    calcified = [p.age_years for p in people if p.brain.arteries.plaque_hu]
    assert min(calcified) > 45
    assert len(calcified) > 40


def test_a_dense_middle_cerebral_artery_is_on_one_side() -> None:
    spec = quiet()
    brain = spec.anatomy.brain
    dense = replace(brain.arteries, dense_side=1, dense_hu=62.0, calibre=1.3)
    spec = replace(spec, anatomy=replace(spec.anatomy, brain=replace(brain, arteries=dense)))
    hu = render_scan(spec, SHAPE, AFFINE, masks=False, scanner=False).hu
    right, left = (at(hu, side * 22, 9, -14, half=1).max() for side in (1, -1))
    assert right > left + 6


def test_a_scan_that_ends_early_lacks_what_is_beyond() -> None:
    lacking = TRAUMA.model_copy(update={"vertex_cut_fraction": 1.0, "base_cut_fraction": 0.0})
    spec = draw_scan(STILL, lacking, 0, 0, findings={"iph": 0.8})
    assert 35 < spec.acquisition.above_mm < 70
    grid = PRESETS["demo"]
    affine = canonical_affine(spec, grid)
    scan = render_scan(spec, grid.shape_zyx, affine, as_ingested=True)
    head = np.flatnonzero((scan.hu > -1000).any(axis=(1, 2))) * 3.3 + affine[0, 3]
    (n_slices, *_), slices = acquisition_grid(spec)
    top = slices[0, 3] + (n_slices - 0.5) * spec.acquisition.slice_thickness_mm
    assert head.max() <= top + 12
    assert head.max() > top - 12
    low = lacking.model_copy(update={"vertex_cut_fraction": 0.0, "base_cut_fraction": 1.0})
    cut = draw_scan(STILL, low, 0, 0, findings={})
    assert 18 < cut.acquisition.below_mm < 48


def test_a_finding_beyond_the_scan_is_not_labelled() -> None:
    spec = draw_scan(STILL, SITE, 0, 0, findings={"iph": 0.5})
    centre = spec.lesions[0].centre  # type: ignore[attr-defined]
    short = replace(spec.acquisition, above_mm=float(centre[2]) - 25, below_mm=80.0)
    grid = PRESETS["demo"]
    for acquisition, label in ((spec.acquisition, 1), (short, 0)):
        seen = replace(spec, acquisition=acquisition)
        affine = canonical_affine(seen, grid)
        truth = render_scan(seen, grid.shape_zyx, affine, as_ingested=True).truth
        assert truth["labels"]["iph"] == label
