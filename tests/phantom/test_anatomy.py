"""A head without findings: where things are, and what they measure."""

from __future__ import annotations

import numpy as np
import pytest

from headct.phantom.anatomy import VAULT_RADII_MM, draw_anatomy, vault_distance, vault_point
from headct.phantom.profile import PhantomPreset, load_preset, load_site
from headct.phantom.render import draw_scan, render_scan

SITE = load_site("hospital-a")
STILL = PhantomPreset(
    rotation_factor=0, shift_factor=0, noise_factor=0, scale_sd=0, deformation_mm=0
)
SHAPE = (80, 100, 90)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-70, -100, -89)


def head_hu(patient: int) -> np.ndarray:
    spec = draw_scan(STILL, SITE, 3, patient, findings={})
    return render_scan(spec, SHAPE, AFFINE, masks=False, scanner=False).hu


def around(hu: np.ndarray, x: float, y: float, z: float, half: int = 1) -> np.ndarray:
    index = np.rint((np.array([z, y, x]) - AFFINE[:3, 3]) / 2).astype(int)
    return hu[tuple(slice(i - half, i + half + 1) for i in index)]


@pytest.fixture(scope="module")
def heads() -> dict[int, np.ndarray]:
    return {patient: head_hu(patient) for patient in range(4)}


def test_each_tissue_has_its_hu(heads: dict[int, np.ndarray]) -> None:
    for patient, hu in heads.items():
        brain = draw_scan(STILL, SITE, 3, patient, findings={}).brain
        assert (np.abs(around(hu, 12, -10, 5) - brain.grey_hu) <= 1).all(), "thalamus"
        assert abs(np.median(around(hu, 24, -16, 19)) - brain.white_hu) <= 1, "deep white matter"
        assert abs(around(hu, 4, 6, 14, 0).item() - brain.csf_hu) <= 2, "lateral ventricle"
        assert around(hu, 30, 50, -38, 3).min() < -50, "orbital fat"
        assert abs(np.median(around(hu, 29, 70, -36)) - 12) <= 2, "globe"
        assert around(hu, 5, 20, -37).min() < -600, "sphenoid sinus"
        assert (around(hu, 88, 92, 80) == -1000).all(), "air"


def test_the_vault_is_closed_bone(heads: dict[int, np.ndarray]) -> None:
    for hu in heads.values():
        for direction in ((1, 0, 0), (-1, 0, 0.3), (0, -1, 0.2), (0.5, 0.5, 0.7), (0, 0, 1)):
            x, y, z = np.multiply(vault_point(direction), 1.05)
            assert around(hu, x, y, z, 2).max() > 500


def test_grey_is_denser_than_white_and_csf_is_darkest() -> None:
    preset = load_preset("base")
    for patient in range(300):
        brain = draw_anatomy(np.random.default_rng(patient), preset).brain
        assert 20 <= brain.white_hu <= 35
        assert 30 <= brain.grey_hu <= 45
        assert brain.grey_hu - brain.white_hu >= 7
        assert 0 <= brain.csf_hu <= 12
        assert 42 <= brain.sinus_hu <= 70


def test_evans_index_of_a_young_head_is_normal(heads: dict[int, np.ndarray]) -> None:
    spec = draw_scan(STILL, SITE, 3, 0, findings={})
    row = heads[0][:, int((28 + 100) / 2)]
    level = row[int((9 + 70) / 2)]
    csf = np.flatnonzero(np.abs(level - spec.brain.csf_hu) < 8)
    horns = csf[(csf > 45 - 14) & (csf < 45 + 14)]
    span_mm = 2 * (horns[-1] - horns[0] + 1)
    assert 0.18 < span_mm / (2 * VAULT_RADII_MM[0]) < 0.31


def test_vault_points_lie_on_the_vault() -> None:
    rng = np.random.default_rng(0)
    points = np.array([vault_point(tuple(rng.standard_normal(3))) for _ in range(50)], np.float32)
    distance, *_ = vault_distance(*points.T)
    np.testing.assert_allclose(distance, 0, atol=1e-3)


def test_heads_differ() -> None:
    preset = load_preset("base")
    heads = [draw_anatomy(np.random.default_rng([1, n]), preset) for n in range(200)]
    assert len({h.skull.frontal for h in heads}) > 150
    assert 0.45 < np.mean([any(c.hu > 0 for c in h.brain.calcifications) for h in heads]) < 0.95
    assert {h.sex for h in heads} == {"F", "M"}
    spread = np.std([h.scale for h in heads])
    assert 0.03 < spread < 0.06
