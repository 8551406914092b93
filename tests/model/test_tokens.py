"""Patches, their places, and which of them are computed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from headct.model.tokens import (
    Tokens,
    gather_patches,
    grid_shape,
    patch_centres_mm,
    select_head_tokens,
    to_channels,
    unravel,
    window_tensors,
)
from headct.volume.volume import AIR_HU
from headct.volume.window import WINDOWS

PATCH = (2, 3, 4)


def head_in_air(offset_x: float = 0.0) -> torch.Tensor:
    """A ball of tissue with an air-filled sinus in it, over a thin table: [z y x]."""
    z, y, x = np.meshgrid(*(np.arange(n) + 0.5 for n in (48, 64, 48)), indexing="ij")
    radius = np.sqrt((z - 26) ** 2 + (y - 34) ** 2 + (x - 24 - offset_x) ** 2)
    hu = np.where(radius < 20, 35, AIR_HU)
    sinus = (abs(z - 28) < 4) & (abs(y - 44) < 4) & (abs(x - 28 - offset_x) < 4)
    hu[sinus] = AIR_HU
    hu[:, 2:4, :] = 0
    return torch.from_numpy(hu.astype(np.int16))


def test_patches_are_the_voxels_of_their_block() -> None:
    volume = torch.arange(2 * 3 * 4 * 6 * 8).float().view(2, 3, 4, 6, 8)
    keep = torch.tensor([[0, 5, 7], [1, 2, 6]])
    patches = gather_patches(volume, PATCH, keep)
    assert patches.shape == (2, 3, 3, 24)
    for b in range(2):
        for i, number in enumerate(keep[b].tolist()):
            z, y, x = number // 4, number // 2 % 2, number % 2
            block = volume[b, :, 2 * z : 2 * z + 2, 3 * y : 3 * y + 3, 4 * x : 4 * x + 4]
            assert torch.equal(patches[b, i], block.reshape(3, 24))


def test_a_volume_without_channels_gives_patches_without_channels() -> None:
    volume = torch.rand(1, 4, 6, 8)
    one = gather_patches(volume[:, None], PATCH)
    assert torch.equal(gather_patches(volume, PATCH), one[:, :, 0])
    assert one.shape == (1, 8, 1, 24)


def test_a_patch_over_the_far_end_is_filled_with_air() -> None:
    volume = torch.zeros(1, 3, 6, 9)
    patches = gather_patches(volume, PATCH)
    assert grid_shape(volume.shape[1:], PATCH) == (2, 2, 3)
    assert patches.shape == (1, 12, 24)
    assert (patches == AIR_HU).sum() == 4 * 6 * 12 - 3 * 6 * 9


def test_centres_in_mm_are_relative_to_the_middle_of_the_volume() -> None:
    index = torch.tensor([[0, 7]])
    centres = patch_centres_mm(index, (4, 6, 8), PATCH, torch.tensor([5.0, 1.0, 0.5]))
    torch.testing.assert_close(centres, torch.tensor([[[-5.0, -1.5, -1.0], [5.0, 1.5, 1.0]]]))
    per_scan = patch_centres_mm(index.expand(2, -1), (4, 6, 8), PATCH, torch.ones(2, 3))
    assert per_scan.shape == (2, 2, 3)


def test_unravel_is_the_inverse_of_the_numbering() -> None:
    index = torch.arange(2 * 3 * 4)
    expected = np.unravel_index(index.numpy(), (2, 3, 4))
    for ours, theirs in zip(unravel(index, (2, 3, 4)), expected, strict=True):
        assert (ours.numpy() == theirs).all()


def test_channels_are_the_windows() -> None:
    hu = torch.randint(-1024, 3071, (2, 3, 50)).float()
    channels = to_channels(hu, *window_tensors(WINDOWS, torch.device("cpu")))
    for c, window in enumerate(WINDOWS):
        torch.testing.assert_close(channels[:, :, c], window.apply(hu), atol=1e-5, rtol=0)
    level = torch.tensor([[40.0], [60.0]])
    own = to_channels(hu, level, torch.full((2, 1), 80.0))
    expected = ((hu[1] - 60.0) / 40.0).clip(-1, 1)
    torch.testing.assert_close(own[1, :, 0], expected, atol=1e-5, rtol=0)


def test_saturated_voxels_are_exactly_at_the_ends() -> None:
    channels = to_channels(torch.tensor([[[-1024.0, 3071.0]]]), *window_tensors(WINDOWS, "cpu"))
    assert (channels[..., 0] == -1).all()
    assert (channels[..., 1] == 1).all()


def test_selection_keeps_the_head_with_its_sinus_and_drops_the_table() -> None:
    hu = head_in_air()[None]
    keep = select_head_tokens(hu, 90, (8, 8, 8))
    assert keep.shape == (1, 90)
    kept = torch.zeros(288, dtype=torch.bool)
    kept[keep[0]] = True
    tissue = gather_patches((hu > -500).float(), (8, 8, 8)).mean(-1)[0].view(6, 8, 6)
    kept = kept.view(6, 8, 6)
    sinus = (28 // 8, 44 // 8, 28 // 8)
    assert tissue[sinus] < 0.6
    assert kept[sinus]
    assert kept[:, 1:][tissue[:, 1:] > 0.3].all()
    assert not kept[:, 0].any()


def test_selection_is_ascending_and_does_not_depend_on_the_batch() -> None:
    scans = torch.stack([head_in_air(dx) for dx in (-2.0, 0.0, 3.0)])
    together = select_head_tokens(scans, 100, (8, 8, 8))
    assert (together[:, 1:] > together[:, :-1]).all()
    for i in range(3):
        assert torch.equal(select_head_tokens(scans[i : i + 1], 100, (8, 8, 8))[0], together[i])
    assert torch.equal(select_head_tokens(scans.float(), 100, (8, 8, 8)), together)


@pytest.mark.parametrize("grid", [(4, 5, 6), (1, 6, 4), (5, 1, 7), (3, 4, 1)])
def test_likeness_is_tissue_here_and_around_less_the_depth(grid: tuple[int, int, int]) -> None:
    patch = (4, 7, 5)
    random = torch.Generator().manual_seed(0)
    hu = torch.randint(
        -1000, 100, [n * p for n, p in zip(grid, patch, strict=True)], generator=random
    )
    hu -= 400 * torch.randint(0, 2, hu.shape[:1], generator=random)[:, None, None]
    tissue = (hu > -500).float().reshape(grid[0], 4, grid[1], 7, grid[2], 5).mean((1, 3, 5))
    height = torch.arange(grid[0]) / grid[0]
    centre = (tissue.sum((1, 2)) * height).sum() / tissue.sum()
    likeness = {}
    for z, y, x in itertools.product(*(range(n) for n in grid)):
        box = tissue[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        depth = max(float(centre - height[z]), 0.0)
        number = (z * grid[1] + y) * grid[2] + x
        likeness[number] = float(tissue[z, y, x]) + float(box.sum()) / 27 - depth
    order = sorted(likeness, key=lambda number: -likeness[number])
    n_tokens = len(order) // 2
    assert likeness[order[n_tokens - 1]] > likeness[order[n_tokens]] + 1e-4
    kept = select_head_tokens(hu[None], n_tokens, patch)[0]
    assert kept.tolist() == sorted(order[:n_tokens])


@pytest.mark.parametrize("n_tokens", [288, 500])
def test_selection_keeps_all_where_there_are_no_more(n_tokens: int) -> None:
    keep = select_head_tokens(torch.full((1, 48, 64, 48), AIR_HU), n_tokens, (8, 8, 8))
    assert torch.equal(keep[0], torch.arange(288))


def test_regions_are_means_over_a_coarse_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randperm(288, generator=generator)[:50].sort().values])
    patches = torch.randn(1, 50, 7, generator=generator)
    nothing = torch.zeros(1, 0)
    tokens = Tokens(nothing, nothing, patches, index, nothing, (6, 8, 6))
    regions = tokens.regions((3, 4, 3))
    assert regions.shape == (1, 36, 7)
    for region in range(36):
        rows = [
            i
            for i, number in enumerate(index[0].tolist())
            if (number // 48 // 2 * 4 + number // 6 % 8 // 2) * 3 + number % 6 // 2 == region
        ]
        expected = patches[0, rows].mean(0) if rows else patches[0].mean(0)
        torch.testing.assert_close(regions[0, region], expected)
