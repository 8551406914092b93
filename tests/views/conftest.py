import numpy as np
import pytest
import torch
from torch import Tensor

from headct.views.mask import patch_occupancy
from headct.volume.preprocessing import Preprocessing

PATCH = (4, 4, 4)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def grid() -> Preprocessing:
    return Preprocessing(shape_zyx=(16, 24, 16), spacing_mm_zyx=(8.0, 8.0, 8.0))


@pytest.fixture(scope="session")
def heads(grid) -> Tensor:
    """[4 z y x] int16: an ellipsoid of textured brain in air, no two alike, no symmetry."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape_zyx), indexing="ij")
    inside = z**2 + y**2 + x**2 < 0.8
    brain = rng.normal(30, 10, (4, *grid.shape_zyx)) + 20 * x
    return torch.from_numpy(np.where(inside, brain, -1000).astype(np.int16))


def select(hu: Tensor) -> Tensor:
    """The 20 fullest patches."""
    occupancy = patch_occupancy(hu, PATCH).flatten(1)
    order = occupancy.argsort(dim=1, descending=True, stable=True)
    return order[:, :20].sort(dim=1).values
