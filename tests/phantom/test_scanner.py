"""The scanner: profiles, calibration, noise, thickness, table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headct.errors import UsageError
from headct.phantom.profile import (
    PhantomPreset,
    load_preset,
    load_site,
    preset_names,
    site_names,
)
from headct.phantom.render import draw_scan, render_scan
from headct.phantom.scanner import draw_noise

SITE_A, SITE_B = load_site("hospital-a"), load_site("hospital-b")
STILL = PhantomPreset(rotation_factor=0, shift_factor=0, deformation_mm=0, scale_sd=0)
SPEC = draw_scan(STILL, SITE_A, 0, 0, findings={})


def noise_sd(correlated: bool, spacing_mm: tuple[float, float, float]) -> float:
    acquisition = replace(SPEC.acquisition, noise_sd_hu=3.0, noise_correlated=correlated)
    return float(draw_noise((40, 60, 50), spacing_mm, acquisition).std())


@pytest.mark.parametrize("correlated", [False, True])
def test_noise_has_its_sd_in_a_reference_voxel(correlated: bool) -> None:
    assert noise_sd(correlated, (3.3, 3.3, 3.3)) == pytest.approx(3.0, rel=0.05)


def test_noise_density_does_not_depend_on_the_grid() -> None:
    fine = noise_sd(False, (1.65, 1.65, 1.65))
    assert fine == pytest.approx(3.0 * 8**0.5, rel=0.05)


def test_calibration_changes_tissue_and_leaves_air() -> None:
    off = replace(
        SPEC.acquisition,
        gain=1.05,
        offset_hu=3.0,
        noise_sd_hu=0.0,
        cupping_hu=0.0,
        streak_hu=0.0,
        kernel_mm=0.0,
        ghost=None,
        slice_thickness_mm=1.0,
    )
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-40, -118, -98)
    clean = render_scan(SPEC, (30, 60, 50), affine, masks=False, scanner=False).hu
    seen = render_scan(replace(SPEC, acquisition=off), (30, 60, 50), affine, masks=False).hu
    brain = (clean > 20) & (clean < 50)
    expected = clean[brain] * 1.05 + 3
    same_slice = np.abs(seen[brain] - expected)
    assert np.median(same_slice) <= 1
    assert abs(np.median(seen[clean == -1000]) + 1000) < 15


def test_the_table_is_under_the_head_and_only_in_air() -> None:
    affine = np.diag([4.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (0, -130, -110)
    shape = (3, 130, 110)
    quiet = replace(SPEC.acquisition, noise_sd_hu=0.0, ghost=None)
    scan = render_scan(replace(SPEC, acquisition=quiet), shape, affine, masks=False).hu
    bare = render_scan(SPEC, shape, affine, masks=False, scanner=False).hu
    table = (scan > -920) & (bare == -1000)
    rows = np.argwhere(table)[:, 1] * 2 - 130
    assert table.sum() > 200
    assert rows.max() < -10
    ingested = render_scan(SPEC, shape, affine, masks=False, as_ingested=True).hu
    assert (ingested[table & (bare == -1000)][rows < -105] == -1024).all()


def test_thick_slices_are_means_of_thin_ones() -> None:
    spec = replace(SPEC, acquisition=replace(SPEC.acquisition, slice_thickness_mm=1.0))
    thin = np.diag([1.0, 3.0, 3.0, 1.0])
    thin[:3, 3] = (-8, -110, -90)
    thick = thin.copy()
    thick[0, 0], thick[0, 3] = 6.0, -8 + 2.5
    fine = render_scan(spec, (12, 74, 60), thin, masks=False, scanner=False).hu
    coarse = render_scan(spec, (2, 74, 60), thick, masks=False, scanner=False).hu
    mean = fine.reshape(2, 6, 74, 60).mean(axis=1)
    head = (mean > -200) & (mean < 200)
    assert np.median(np.abs(coarse - mean)[head]) < 2


def test_sites_are_as_their_profiles_say() -> None:
    scans = [draw_scan(STILL, SITE_B, 0, n).acquisition for n in range(200)]
    assert {s.manufacturer for s in scans} == {s.manufacturer for s in SITE_B.scanners}
    low, high = SITE_B.slice_thickness_mm
    assert all(low <= s.slice_thickness_mm <= high for s in scans)
    assert all(0.93 <= s.gain <= 1.07 for s in scans)
    assert all(s.kernel_mm != 0 for s in scans)
    assert 0.15 < np.mean([s.ghost is not None for s in scans]) < 0.35
    assert 0.1 < np.mean([s.gantry_tilt_deg != 0 for s in scans]) < 0.3


def test_every_built_in_profile_and_preset_loads() -> None:
    assert {"base", "canonical", "demo", "hard"} <= set(preset_names())
    assert {"hospital-a", "hospital-b"} <= set(site_names())
    for name in preset_names():
        assert load_preset(name).severity > 0
    for name in site_names():
        assert load_site(name).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("noise_sd_hu = [3, 1]", "lower end"),
        ("noise_sd_hu = [-1, 1]", "noise_sd_hu.*0 to 50 HU"),
        ("slice_thickness_mm = [0, 5]", "slice_thickness_mm.*0.3 to 20 mm"),
        ("slice_thickness_mm = [1, 90]", "20 mm"),
        ("ghost_fraction = 1.5", "ghost_fraction"),
        ("gantry_tilt_deg = [0, 60]", "30 degrees"),
        ("blur_fraction = 0.8\nsharpen_fraction = 0.8", "above 1"),
        ("noise = 3", "unknown key"),
        ("gain_range = [0.2, 1.0]", "gain_range.*0.8 to 1.2"),
        ("contrast_hu = [50, 5000]", "contrast_hu.*10 to 600 HU"),
        ("contrast_fraction = -0.1", "contrast_fraction.*below 0, the least"),
        ("cut_mm = [10, 500]", "cut_mm.*0 to 80 mm"),
        ("vertex_cut_fraction = 0.6\nbase_cut_fraction = 0.6", "above 1"),
        (
            "vertex_cut_fraction = 0.1\nbelow_mm = [0, 80]\ncut_mm = [5, 60]",
            "nothing of a cut scan",
        ),
        ("base_cut_fraction = 0.1\nabove_mm = [20, 90]\ncut_mm = [5, 60]", "nothing of a cut scan"),
        (
            "[[scanners]]\nmodel='m'\nmanufacturer='M'\nkernel='k'\nmas=[1, 5]",
            "mas.*20 to 1000 mAs",
        ),
        ("[[scanners]]\nmodel='m'\nmanufacturer='M'\nkernel='k'\nkvp=1200", "kvp.*140"),
    ],
)
def test_an_impossible_site_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(
        f'name = "s"\n{text}\n[[scanners]]\nmanufacturer = "M"\nmodel = "m"\nkernel = "k"\n'
    )
    with pytest.raises(UsageError, match=words):
        load_site(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prevalence.edh=1.2", "1.2 is above 1, the most"),
        ("prevalence.sdhh=0.1", "did you mean sdh"),
        ("severity=0", "severity"),
        ("scale_sd=0.9", "scale_sd"),
        ("min_slice_mm=500", "min_slice_mm.*above 20, the most"),
    ],
)
def test_an_impossible_preset_is_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_preset("demo", [override])
