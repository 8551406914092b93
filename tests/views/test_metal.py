import numpy as np
import pytest
import torch

from headct.views.metal import MetalStreaks
from headct.volume.volume import MAX_HU

from .test_augment import GRID, at, draw, water

PLACE_MM = (10.0, -14.0, 6.0)
DRAWN = {
    "metal_hu": torch.tensor([100.0, 0.0]),
    "metal_reach_mm": torch.tensor([30.0, 30.0]),
    "metal_height_mm": torch.tensor([6.0, 6.0]),
    "metal_radius_mm": torch.tensor([3.0, 3.0]),
    "metal_rays": torch.tensor([4.0, 4.0]),
    "metal_angle": torch.tensor([0.5, 0.5]),
    "metal_place": torch.tensor([PLACE_MM, PLACE_MM]),
}


def mm(axis: int) -> np.ndarray:
    return (np.arange(GRID[axis]) - (GRID[axis] - 1) / 2) * 4.0


def test_rays_are_the_formula_voxel_by_voxel():
    hu = MetalStreaks().apply(water(2), DRAWN, at(2))
    assert (hu[1] == 0).all()
    rng = np.random.default_rng(0)
    for z, y, x in rng.integers(0, GRID, (200, 3)):
        dz, dy, dx = mm(0)[z] - 10.0, mm(1)[y] + 14.0, mm(2)[x] - 6.0
        distance = np.hypot(dy, dx)
        expected = 100 * np.exp(-((dz / 6) ** 2)) * np.exp(-distance / 30)
        expected *= np.cos(4 * np.arctan2(dy, dx) + 0.5)
        if dz**2 + distance**2 < 9:
            expected = MAX_HU
        assert hu[0, z, y, x].item() == pytest.approx(expected, abs=1e-2)


def test_metal_is_where_the_rays_start():
    hu = MetalStreaks().apply(water(2), DRAWN, at(2))
    metal = (hu[0] == MAX_HU).nonzero().numpy()
    assert len(metal)
    middle = [mm(axis)[metal[:, axis]].mean() for axis in range(3)]
    np.testing.assert_allclose(middle, PLACE_MM, atol=3.0)


def test_it_is_rare_and_stays_in_its_box():
    drawn = draw(MetalStreaks(), 3000)
    assert (drawn["metal_hu"] > 0).float().mean() == pytest.approx(0.03, abs=0.01)
    assert set(drawn["metal_rays"].tolist()) == {3, 4, 5, 6, 7, 8}
    assert (drawn["metal_place"].abs() <= torch.tensor([80.0, 80.0, 60.0])).all()
