"""Views cut in bfloat16, where a CPU multiplies tiles of it, against those in float32."""

from __future__ import annotations

import pytest
import torch

from headct.views import tiles
from headct.views.cut import Path, Placement, cut, rotation_matrix
from headct.volume.volume import AIR_HU

SPACING = (2.0, 2.0, 2.0)
SHAPE = (40, 48, 40)


def head() -> torch.Tensor:
    """[2 z y x] int16: air, a skull of 1,000 HU, and brain with noise around 35 HU."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in SHAPE]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    radius = ((z / 22) ** 2 + (y / 22) ** 2 + (x / 18) ** 2).sqrt()
    noise = 5 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    one = torch.where(radius < 0.9, 35.0, torch.where(radius < 1, 1000.0, float(AIR_HU)))
    return torch.where(radius < 1, one + noise, one).to(torch.int16)


def placement(rotation_deg: float) -> Placement:
    """Two views a scan: one turned over, one that looks beyond the scan along every axis."""
    centre = torch.tensor([[19.5, 23.5, 19.5], [25.0, 30.0, 14.0]]).repeat(2, 1)
    step = torch.tensor([[1.04, 1.04, -1.04], [0.95, 0.95, 0.95]]).repeat(2, 1)
    turned = torch.tensor([[0.0, 0.0, rotation_deg]]).expand(4, 3)
    return Placement(centre, step, rotation_matrix(turned), (32, 40, 32), SPACING, SHAPE)


def blur(n: int) -> torch.Tensor:
    """[4 n n] a sharpening kernel for the first scan, a blur for the second."""
    voxel = torch.arange(n)
    fall = torch.exp(-0.5 * (voxel[:, None] - voxel) ** 2)
    smooth = fall / fall.sum(-1, keepdim=True)
    sharp = torch.eye(n) + 0.5 * (torch.eye(n) - smooth)
    return torch.stack([sharp, sharp, smooth, smooth])


@pytest.mark.parametrize("path", ["axes", "sample"])
def test_views_in_tiles_are_those_in_float32(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = placement(0.0 if path == "axes" else 6.0)
    spread = [blur(n) for n in at.shape_zyx]
    monkeypatch.setattr(tiles, "has_tiles", lambda: False)
    exact = cut(head(), at, spread, path)
    monkeypatch.setattr(tiles, "has_tiles", lambda: True)
    assert torch.equal(cut(head(), at, spread, path), exact)  # too small to be worth it
    monkeypatch.setattr(tiles, "LEAST_VOXELS", 1)
    found = cut(head(), at, spread, path)
    assert found.dtype == exact.dtype
    off = (found - exact).abs()
    brain = off[:, 12:20, 16:24, 12:20]
    assert 0 < brain.mean() < 0.25  # HU; scans are whole HU
    assert brain.max() < 1.0
    assert off[exact > 400].mean() < 6.0  # the skull is 2,000 HU above the air beside it
    assert off.max() < 40.0
    far = exact == AIR_HU
    assert far.any()
    assert off[far].mean() < 0.5


def test_air_lies_beyond_the_scan_in_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "has_tiles", lambda: True)
    monkeypatch.setattr(tiles, "LEAST_VOXELS", 1)
    brain = torch.full((2, *SHAPE), 40, dtype=torch.int16)
    at = placement(0.0)
    views = cut(brain, at, (None, None, None), "axes")
    share = [at.axis_operator(axis, brain.device).sum(-1) for axis in range(3)]
    within = torch.einsum("nz,ny,nx->nzyx", *share)  # the share of brain in each voxel
    assert (within == 0).any()
    assert (within[1] == 1).any()
    expected = AIR_HU + (40 - AIR_HU) * within
    torch.testing.assert_close(views, expected, atol=8.0, rtol=0)
    whole = within > 0.9999
    torch.testing.assert_close(views[whole], expected[whole], atol=0.3, rtol=0)


def test_rounding_keeps_the_sums_of_rows() -> None:
    operators = blur(32) @ placement(0.0).axis_operator(0, torch.device("cpu"))
    near = tiles.rounded(operators)
    assert torch.equal(near, near.bfloat16().float())
    torch.testing.assert_close(near.sum(-1), operators.sum(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(near, operators, atol=6e-3, rtol=0)


def test_rounding_gives_no_weight_to_voxels_that_had_none() -> None:
    alone = torch.zeros(1, 300, 40)
    alone[0, :, 20] = torch.linspace(0.01, 0.99, 300)
    near = tiles.rounded(alone)
    assert ((near != 0) == (alone != 0)).all()


@pytest.mark.parametrize("n_slices", [1, 2, 3])
def test_few_slices_in_tiles(n_slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    centre = torch.tensor([[-0.5, 23.5, 19.5], [30.0, 23.5, 19.5]]).repeat(2, 1)
    upright = rotation_matrix(torch.zeros(4, 3))
    shape = (n_slices, 40, 32)
    at = Placement(centre, torch.ones(4, 3), upright, shape, SPACING, SHAPE)
    monkeypatch.setattr(tiles, "has_tiles", lambda: False)
    exact = cut(head(), at, (None, None, None), "axes")
    monkeypatch.setattr(tiles, "has_tiles", lambda: True)
    monkeypatch.setattr(tiles, "LEAST_VOXELS", 1)
    found = cut(head(), at, (None, None, None), "axes")
    torch.testing.assert_close(found, exact, atol=20.0, rtol=0)
    assert (found - exact).abs().mean() < 0.5
