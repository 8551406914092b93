"""Kernels of a GPU against torch's operations; on a CPU with TRITON_INTERPRET=1 and triton.

A slice of the views is two programs of a kernel, the second of them not full.
"""

import os

import pytest
import torch
from torch.nn import functional as F

from headct.views.augment import AugmentConfig
from headct.views.batch import ViewMaker, ViewsConfig
from headct.views.cut import Placement, rotation_matrix
from headct.views.response import Response, _all_at_once
from headct.volume.volume import AIR_HU

pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA")
from headct.views import kernels

from .conftest import PATCH, select

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU, and TRITON_INTERPRET is not 1"
)
GRID, SHAPE, SPACING = (24, 30, 20), (7, 33, 31), (2.0, 1.5, 2.0)


def oblique(n: int, apart_voxels: float) -> Placement:
    random = torch.Generator().manual_seed(0)
    centre = (torch.tensor(GRID) - 1) / 2 + apart_voxels
    step = (1 + 0.05 * torch.randn(n, 3, generator=random)) * torch.tensor([1.0, 1.0, -1.0])
    turn = rotation_matrix(12 * torch.randn(n, 3, generator=random))
    centre = centre + 6 * torch.randn(n, 3, generator=random)
    return Placement(centre, step, turn, SHAPE, SPACING, GRID)


@pytest.mark.parametrize("apart_voxels", [0.0, 14.0, -1e12])
def test_views_are_the_trilinear_sampling_of_their_scan(apart_voxels):
    random = torch.Generator().manual_seed(1)
    scans = torch.randint(-1024, 3000, (3, *GRID), generator=random, dtype=torch.int16)
    place = oblique(6, apart_voxels)
    where = place.start_voxel().to(DEVICE), place.axes().to(DEVICE)
    found = kernels.sample(scans.to(DEVICE), *where, SHAPE, torch.float32).cpu()
    grid = place.sampling_grid(3, torch.device("cpu")).double()
    above_air = (scans.double() - AIR_HU)[:, None]
    expected = F.grid_sample(above_air, grid, align_corners=False).view(6, *SHAPE) + AIR_HU
    assert (found - expected).abs().max() < 1.0  # neighbours differ by up to 4,000 HU
    half = kernels.sample(scans.to(DEVICE), *where, SHAPE, torch.float16).cpu()
    torch.testing.assert_close(half, found.half(), atol=1.0, rtol=1e-3)


def test_a_response_is_that_of_torch_on_rows_of_any_stride():
    random = torch.Generator().manual_seed(2)
    n, (z, y, x) = 4, SHAPE

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    bank = some(2, z + 12, y + 12, x + 10)
    first = torch.tensor([0, 5, bank[0].numel() + 40, 700])
    of = Response(
        1 + 0.1 * some(n), some(n), 6 * some(n), some(n, y) ** 2, some(n, x) ** 2,
        9 * some(n, z), some(n, x), 8 * some(n, z), first,
    )  # fmt: skip
    hu = (500 * some(n, y, z, x) - 600).half().transpose(1, 2)
    assert not hu.is_contiguous()
    on_device = [part.to(DEVICE) for part in (hu, *of.packed(), bank)]
    found = kernels.respond(*on_device).cpu()
    expected = _all_at_once(hu.float().contiguous(), of, bank)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-6)
    assert found.min() == AIR_HU


def test_views_of_a_batch_are_those_of_torch(grid, heads, monkeypatch):
    augment = {name: {"probability": 0.6} for name in AugmentConfig.model_fields if name != "gain"}
    config = ViewsConfig.model_validate({"augment": augment, "crop": {"local_mm": 64.0}})
    places = [(0, 0), (0, 1), (3, 2), (0, 7)]
    alone = ViewMaker(config, grid, PATCH, select, seed=5).make(heads, places, step=1)
    for module in ("draws", "cut", "spread", "response"):
        monkeypatch.setattr(f"headct.views.{module}.one_by_one", lambda _: False)
    for module in ("cut", "response", "backend"):
        monkeypatch.setattr(f"headct.views.{module}.has_kernels", lambda _: True)
    maker = ViewMaker(config, grid, PATCH, select, seed=5)
    together = maker.make(heads.to(DEVICE), places, step=1)
    for name in ("globals_hu", "locals_hu"):
        apart = (getattr(together, name).cpu() - getattr(alone, name)).abs()
        assert getattr(together, name).dtype == torch.float32
        assert apart.mean() < 0.05
        assert (apart > 2).float().mean() < 1e-3  # edges of what is erased
