import itertools

import numpy as np
import pytest
import torch

from headct.views.draws import Draws, generator
from headct.views.mask import MaskConfig, draw_mask, patch_occupancy

GRID = (4, 6, 4)
KEEP = torch.arange(0, 96, 2)[None].repeat(20, 1)


def masks(config: MaskConfig, n_masked: int) -> torch.Tensor:
    values = config.draw(Draws([generator(0, "views", 0, 0)]), 20, 96)
    return draw_mask(KEEP, GRID, {k: torch.from_numpy(v) for k, v in values.items()}, n_masked)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_view_loses_the_same_number(share):
    masked = masks(MaskConfig(block_share=share), 30)
    assert masked.shape == KEEP.shape
    assert (masked.sum(1) == 30).all()
    assert len(masked.unique(dim=0)) > 15


def test_block_views_keep_one_region():
    def spread(masked: torch.Tensor) -> float:
        """Mean distance around the torus between visible tokens."""
        apart = []
        for keep, row in zip(KEEP, masked, strict=True):
            place = np.stack(np.unravel_index(keep[~row].numpy(), GRID), 1)
            gap = np.abs(place[:, None] - place)
            apart.append(np.sqrt((np.minimum(gap, np.array(GRID) - gap) ** 2).sum(-1)).mean())
        return float(np.mean(apart))

    block, scattered = masks(MaskConfig(block_share=1), 38), masks(MaskConfig(block_share=0), 38)
    assert spread(block) < 0.75 * spread(scattered)


def test_the_ratio_is_drawn_per_batch_within_its_range():
    config = MaskConfig(ratio=(0.5, 0.8))
    counts = [config.draw_n_masked(generator(0, "batch", step), 100) for step in range(200)]
    assert 50 <= min(counts) < 55
    assert 75 < max(counts) <= 80
    assert MaskConfig(ratio=(0, 0)).draw_n_masked(generator(0, "batch", 0), 100) == 0
    assert MaskConfig(ratio=(1, 1)).draw_n_masked(generator(0, "batch", 0), 100) == 99


def test_occupancy_is_the_share_of_tissue():
    hu = torch.full((1, 4, 4, 8), -1000)
    hu[0, :2, :, :4] = 20
    assert patch_occupancy(hu, (4, 4, 4)).flatten().tolist() == [0.5, 0.0]


@pytest.mark.parametrize("patch", [(16, 16, 16), (15, 17, 2), (256, 1, 1), (4, 12, 12)])
def test_full_patches_are_full_however_many_voxels_they_have(patch):
    shape = tuple(n * p for n, p in zip((1, 2, 1), patch, strict=True))
    occupancy = patch_occupancy(torch.zeros(2, *shape, dtype=torch.int16), patch)
    assert torch.equal(occupancy, torch.ones(2, 1, 2, 1))


@pytest.mark.parametrize("patch", [(8, 8, 8), (4, 4, 4), (5, 6, 7), (16, 16, 2), (32, 8, 4)])
def test_occupancy_is_counted_voxel_by_voxel(patch):
    shape = tuple(2 * p for p in patch)
    hu = torch.randint(-1000, 100, (3, *shape), generator=torch.Generator().manual_seed(0))
    found = patch_occupancy(hu.to(torch.int16), patch)
    for place in itertools.product(range(2), repeat=3):
        box = [slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)]
        share = (hu[:, *box] > -500).float().mean((1, 2, 3))
        torch.testing.assert_close(found[:, *place], share)
