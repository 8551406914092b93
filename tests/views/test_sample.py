import pytest
import torch
from torch.nn import functional as F

from headct.views.cut import Placement, cut, rotation_matrix
from headct.views.sample import sample_affine
from headct.volume.volume import AIR_HU

GRID, SPACING = (24, 30, 20), (2.0, 1.5, 2.0)


def oblique(n: int, apart_voxels: float = 0.0) -> Placement:
    random = torch.Generator().manual_seed(0)
    centre = (torch.tensor(GRID) - 1) / 2 + apart_voxels
    mirror = torch.tensor([1.0, 1.0, -1.0])
    return Placement(
        centre_voxel=centre + 3 * torch.randn(n, 3, generator=random),
        step=(1 + 0.05 * torch.randn(n, 3, generator=random)) * mirror,
        rotation=rotation_matrix(12 * torch.randn(n, 3, generator=random)),
        shape_zyx=(17, 24, 16),
        spacing_mm_zyx=SPACING,
        source_shape_zyx=GRID,
    )


def noise() -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(-1024, 3000, (1, *GRID), generator=random, dtype=torch.int16)


@pytest.mark.parametrize("apart_voxels", [0.0, 14.0, -14.0, 100.0])
def test_look_ups_in_slices_are_the_trilinear_sampling(apart_voxels):
    scan, place = noise(), oblique(5, apart_voxels)
    views = cut(scan, place, (None, None, None), "sample")
    above_air = (scan.double() - AIR_HU)[:, None].expand(5, -1, -1, -1, -1)
    grid = place.sampling_grid(5, scan.device).double()
    expected = F.grid_sample(above_air, grid, align_corners=False)[:, 0] + AIR_HU
    assert (views - expected).abs().max() < 2.0  # neighbours differ by up to 4,000 HU
    assert (views - expected).abs().mean() < 0.1


@pytest.mark.parametrize("path", ["sample", "axes"])
def test_a_view_does_not_depend_on_those_beside_it(path):
    scan, place = noise(), oblique(4)
    together = cut(scan, place, (None, None, None), path)
    for i in range(4):
        rows = slice(i, i + 1)
        alone = Placement(
            place.centre_voxel[rows],
            place.step[rows],
            place.rotation[rows],
            place.shape_zyx,
            SPACING,
            GRID,
        )
        assert torch.equal(cut(scan, alone, (None, None, None), path)[0], together[i])


def test_voxels_beyond_the_scan_are_air_and_those_within_stay():
    scan, out = noise()[0], torch.empty(26, 30, 20)
    sample_affine(scan, torch.tensor([-1.0, 0.0, 0.0]), torch.eye(3), out)
    torch.testing.assert_close(out[1:-1], scan.float() - AIR_HU, atol=0.5, rtol=0)
    assert (out[0] == 0).all()
    assert (out[-1] == 0).all()
