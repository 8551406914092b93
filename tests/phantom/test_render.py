"""Rendering: pure, mirrored, the same head on any grid."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from headct.errors import GeometryError
from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import (
    acquisition_grid,
    canonical_affine,
    draw_scan,
    head_box_mm,
    mirrored,
    render_scan,
)
from headct.volume.canonical import to_canonical
from headct.volume.preprocessing import PRESETS
from headct.volume.volume import Volume

SITE_A, SITE_B = load_site("hospital-a"), load_site("hospital-b")
BASE = load_preset("base")
GRID = PRESETS["demo"]
ALL = {"edh": True, "iph": True, "fracture": True, "hydrocephalus": True, "sah": True}

DIGEST = """
import hashlib
from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.volume.preprocessing import PRESETS
grid = PRESETS["demo"]
spec = draw_scan(load_preset("base"), load_site("hospital-b"), 4, 9, 1)
scan = render_scan(spec, grid.shape_zyx, canonical_affine(spec, grid))
masks = b"".join(scan.masks[name].tobytes() for name in sorted(scan.masks))
print(hashlib.sha256(scan.hu.tobytes() + masks + repr(scan.truth).encode()).hexdigest())
"""


def test_the_same_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_mirrored_scan_is_the_mirrored_volume() -> None:
    spec = draw_scan(BASE, SITE_A, 1, 2, findings=ALL)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-60, -112, -94)
    scan = render_scan(spec, (36, 56, 48), affine)
    mirror = render_scan(mirrored(spec), (36, 56, 48), affine)
    np.testing.assert_array_equal(mirror.hu, scan.hu[:, :, ::-1])
    for finding, mask in scan.masks.items():
        np.testing.assert_array_equal(mirror.masks[finding], mask[:, :, ::-1])
    assert mirror.truth["midline_shift_mm"] == -scan.truth["midline_shift_mm"]
    sides = {scan.truth["findings"]["edh"]["side"], mirror.truth["findings"]["edh"]["side"]}
    assert sides == {"left", "right"}
    low, high = head_box_mm(spec)
    mirror_low, mirror_high = head_box_mm(mirrored(spec))
    np.testing.assert_allclose([-high[2], -low[2]], [mirror_low[2], mirror_high[2]])
    np.testing.assert_allclose(low[:2], mirror_low[:2])


def test_two_sites_see_the_same_person() -> None:
    a, b = (draw_scan(BASE, site, 1, 3) for site in (SITE_A, SITE_B))
    assert a.anatomy.brain == b.anatomy.brain
    assert a.lesions == b.lesions
    assert a.acquisition != b.acquisition
    later = draw_scan(BASE, SITE_A, 1, 3, scan=1)
    assert later.anatomy.skull == a.anatomy.skull
    assert later.acquisition != a.acquisition
    other = draw_scan(BASE, SITE_A, 1, 4)
    assert other.anatomy.skull != a.anatomy.skull


def test_the_grid_does_not_change_the_head() -> None:
    spec = draw_scan(BASE, SITE_A, 1, 5, findings={"iph": 0.9})
    spec = replace(spec, acquisition=replace(spec.acquisition, slice_thickness_mm=1.0))
    coarse_affine = canonical_affine(spec, GRID)
    coarse = render_scan(spec, GRID.shape_zyx, coarse_affine, scanner=False)
    fine_affine = coarse_affine.copy()
    fine_affine[:3, :3] /= 2
    fine_affine[:3, 3] -= 3.3 / 4
    shape = tuple(2 * n for n in GRID.shape_zyx)
    fine = render_scan(spec, (shape[0], shape[1], shape[2]), fine_affine, scanner=False)
    nz, ny, nx = GRID.shape_zyx
    mean = fine.hu.reshape(nz, 2, ny, 2, nx, 2).mean(axis=(1, 3, 5))
    brain = (mean > 0) & (mean < 80)
    assert np.median(np.abs(mean - coarse.hu)[brain]) < 2
    volume = coarse.truth["volume_ml"]["iph"]
    assert fine.truth["volume_ml"]["iph"] == pytest.approx(volume, rel=0.03)


def test_a_turned_grid_shows_the_same_points() -> None:
    spec = draw_scan(BASE, SITE_A, 1, 6, findings={})
    spec = replace(spec, acquisition=replace(spec.acquisition, slice_thickness_mm=1.0))
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-30, -99, -81)
    upright = render_scan(spec, (20, 67, 55), affine, masks=False, scanner=False).hu
    turned = np.zeros((4, 4))
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = 3, 3, 3, 1
    turned[:3, 3] = affine[:3, 3]
    other = render_scan(spec, (67, 55, 20), turned, masks=False, scanner=False).hu
    difference = np.abs(other.transpose(2, 0, 1).astype(int) - upright)
    assert np.median(difference) <= 1
    assert np.mean(difference > 20) < 0.02


@pytest.mark.parametrize("site", [SITE_A, SITE_B], ids=["a", "b"])
def test_the_canonical_grid_is_where_ingest_would_put_it(site: object) -> None:
    preset = load_preset("canonical")
    for patient in range(3):
        spec = draw_scan(preset, site, 2, patient, findings={})
        coarse = replace(spec.acquisition, matrix=96, slice_thickness_mm=5.0)
        spec = replace(spec, acquisition=coarse)
        shape, affine = acquisition_grid(spec)
        seen = to_canonical(Volume(render_scan(spec, shape, affine, masks=False).hu, affine), GRID)
        away_mm = (seen.affine_zyx - canonical_affine(spec, GRID))[:3, 3]
        assert np.abs(away_mm).max() < 4
        direct = render_scan(
            spec, GRID.shape_zyx, seen.affine_zyx, masks=False, as_ingested=True
        ).hu
        kept, expected = seen.hu != -1024, direct != -1024
        assert 2 * (kept & expected).sum() / (kept.sum() + expected.sum()) > 0.93
        brain = (direct > 0) & (direct < 60) & (seen.hu > 0) & (seen.hu < 60)
        assert abs(np.median(direct[brain]) - np.median(seen.hu[brain])) < 3


def test_the_head_is_inside_its_box() -> None:
    for patient in range(4):
        spec = draw_scan(BASE, SITE_A, 2, patient, findings={})
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = (20, -130, -110)
        hu = render_scan(spec, (30, 66, 56), affine, masks=False, scanner=False).hu
        low, high = head_box_mm(spec)
        head = np.argwhere(hu > -500) * 4 + affine[:3, 3]
        assert (head.min(axis=0)[1:] > low[1:] - 9).all()
        assert (head.max(axis=0) < high + 9).all()
        assert head[:, 0].max() > high[0] - 9


def test_masks_can_be_left_out_without_changing_anything_else() -> None:
    spec = draw_scan(BASE, SITE_A, 1, 2, findings=ALL)
    affine = canonical_affine(spec, GRID)
    full = render_scan(spec, GRID.shape_zyx, affine)
    bare = render_scan(spec, GRID.shape_zyx, affine, masks=False)
    np.testing.assert_array_equal(full.hu, bare.hu)
    assert full.truth == bare.truth
    assert not bare.masks


def test_what_a_header_may_say_does_not_depend_on_findings() -> None:
    well = draw_scan(BASE, SITE_A, 1, 8, findings={})
    ill = draw_scan(BASE, SITE_A, 1, 8, findings=ALL)
    assert well.acquisition == ill.acquisition
    assert (well.anatomy.age_years, well.anatomy.sex) == (ill.anatomy.age_years, ill.anatomy.sex)
    assert acquisition_grid(well)[0] == acquisition_grid(ill)[0]
    np.testing.assert_array_equal(canonical_affine(well, GRID), canonical_affine(ill, GRID))


def test_an_impossible_grid_is_refused() -> None:
    spec = draw_scan(BASE, SITE_A, 1, 8, findings={})
    with pytest.raises(GeometryError):
        render_scan(spec, (0, 4, 4), np.eye(4))
    with pytest.raises(GeometryError):
        render_scan(spec, (4, 4, 4), np.zeros((4, 4)))
