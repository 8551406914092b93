"""Haemorrhages are as large and as dense as in BHSD, when rendered."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from headct.phantom.anatomy import Deformation, draw_anatomy
from headct.phantom.patient import draw_findings
from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import draw_scan, render_scan
from headct.phantom.sizing import Picture, evans_index, true_size
from headct.phantom.volumes import HAEMORRHAGES, Haemorrhage, quantile, volume_ml

PRESET = load_preset("base").model_copy(update={"rotation_factor": 0.0, "shift_factor": 0.0})
SITE = load_site("hospital-a")
SHAPE = (29, 62, 51)
AFFINE = np.diag([5.0, 3.0, 3.0, 1.0])
AFFINE[:3, 3] = (-64, -92, -75)
N = 40
BOX = ((0.0, 0.0, 20.0), (12.0, 12.0, 12.0))
NO_DEFORMATION = Deformation(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1))
PERCENTILES = (5, 10, 25, 50, 75, 90, 95)


@pytest.fixture(scope="module")
def bhsd(real_data: Path) -> list[dict[str, str]]:
    table = real_data / "labels" / "fda_BHSD_hemorrhage_characteristics.csv"
    if not table.exists():
        pytest.skip("the table of BHSD's lesions is not here")
    with table.open(newline="") as handle:
        return list(csv.DictReader(handle))


@lru_cache
def volumes_and_hu(finding: Haemorrhage) -> tuple[list[float], list[float]]:
    """Rendered at the middle of each 40th of the severities: volumes in ml, HU of those > 1 ml."""
    volumes, hu = [], []
    for place in range(N):
        spec = draw_scan(PRESET, SITE, 9, place, findings={finding: (place + 0.5) / N})
        scan = render_scan(spec, SHAPE, AFFINE, scanner=False)
        volumes.append(scan.truth["volume_ml"][finding])
        if volumes[-1] > 1 and scan.masks[finding].any():
            hu.append(float(np.median(scan.hu[scan.masks[finding]])))
    return volumes, hu


@pytest.mark.parametrize("finding", HAEMORRHAGES)
def test_volumes_follow_those_of_bhsd(finding: Haemorrhage, bhsd: list[dict[str, str]]) -> None:
    totals: dict[str, float] = defaultdict(float)
    for row in bhsd:
        if row["Type"] == finding.upper():
            totals[row["Data_ID"]] += float(row["Volume_[mL]"])
    volumes, _ = volumes_and_hu(finding)
    real = np.percentile(list(totals.values()), PERCENTILES)
    ratios = np.percentile(volumes, PERCENTILES) / real
    assert np.abs(np.log(ratios)).max() < np.log(1.35), dict(zip(PERCENTILES, ratios, strict=True))
    assert abs(np.log(ratios[3])) < np.log(1.2), "median"


@pytest.mark.parametrize("finding", HAEMORRHAGES)
def test_density_follows_that_of_bhsd(finding: Haemorrhage, bhsd: list[dict[str, str]]) -> None:
    large = [row for row in bhsd if float(row["Volume_[mL]"]) > 1]
    real = [float(row["Median_HU"]) for row in large if row["Type"] == finding.upper()]
    _, hu = volumes_and_hu(finding)
    off = np.percentile(hu, [25, 50, 75]) - np.percentile(real, [25, 50, 75])
    assert np.abs(off).max() < 6, off
    assert np.percentile(real, 40) < np.median(hu) < np.percentile(real, 75)


@pytest.mark.parametrize("finding", HAEMORRHAGES)
def test_severity_is_a_quantile_of_the_volume(finding: Haemorrhage) -> None:
    severities = np.linspace(0, 1.2, 25)
    volumes = [volume_ml(finding, float(s)) for s in severities]
    assert np.all(np.diff(volumes[:21]) > 0)
    assert volumes[-1] < 1.3 * volumes[20], "hardly more than in the largest"
    planned = draw_findings(
        PRESET, 0, 1, draw_anatomy(np.random.default_rng(0), PRESET), 0, {finding: 0.5}
    )
    assert sum(m.volume_ml for m in planned) == pytest.approx(volume_ml(finding, 0.5))


def test_iph_lies_above_the_median_of_bhsd(bhsd: list[dict[str, str]]) -> None:
    large = [row for row in bhsd if float(row["Volume_[mL]"]) > 1]
    real = [float(row["Volume_[mL]"]) for row in large if row["Type"] == "IPH"]
    volumes, _ = volumes_and_hu("iph")
    assert np.percentile(real, 50) < np.median(volumes) < np.percentile(real, 75)


def test_presets_shift_severity() -> None:
    u = np.linspace(0.01, 0.99, 50)
    assert [quantile(float(v), 1.0) for v in u] == pytest.approx(list(u))
    assert all(quantile(float(v), 1.6) > v > quantile(float(v), 0.7) for v in u)


def test_evans_index_grows_with_the_ventricles() -> None:
    spec = draw_scan(PRESET, SITE, 0, 3, findings={})
    wide = draw_scan(PRESET, SITE, 0, 3, findings={"hydrocephalus": 0.8})
    normal_index = evans_index(spec.anatomy, spec.brain)
    assert 0.18 < normal_index < 0.31
    assert evans_index(wide.anatomy, wide.brain) > 1.25 * normal_index
    indices = [
        evans_index(person.anatomy, person.brain)
        for person in (draw_scan(PRESET, SITE, 0, n, findings={}) for n in range(40))
    ]
    assert 0.22 < np.median(indices) < 0.28


def test_a_picture_has_the_scale_of_the_head() -> None:
    anatomy = draw_anatomy(np.random.default_rng(1), PRESET)
    picture = Picture.of(anatomy, *BOX, 2.0)
    assert picture.canvas.hu.shape == (13, 13, 13)
    assert picture.canvas.box((0.0, 0.0, 20.0), (2.0, 2.0, 2.0)) is not None
    assert picture.voxel_ml == pytest.approx(0.008 * np.prod(anatomy.scale), rel=0.3)
    assert true_size(replace(anatomy, deformation=NO_DEFORMATION), *BOX) == pytest.approx(
        np.prod(anatomy.scale)
    )
    parts = picture.brain(anatomy.brain)
    assert parts.inside.min() == 1
    np.testing.assert_allclose(parts.csf + parts.tissue + parts.ventricle, 1, atol=0.3)
