"""The look-up of patches on a GPU against torch's; on a CPU with TRITON_INTERPRET=1 and triton."""

import os

import pytest
import torch

from headct.model.architecture import ENCODERS
from headct.model.encoder import ViT3D
from headct.model.tokens import InputWindows, every_patch, gather_patches, grid_shape
from headct.volume.volume import AIR_HU

pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA")
from headct.model.patch_kernel import patches_of, window_patches_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU, and TRITON_INTERPRET is not 1"
)
PATCH = (2, 4, 3)  # 24 voxels: no power of two


def volumes(*shape: int) -> torch.Tensor:
    return 300 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def some_of(n: int, grid: tuple[int, int, int]) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    everything = every_patch(1, grid, torch.device("cpu")).shape[1]
    chosen = [torch.randperm(everything, generator=random)[:7] for _ in range(n)]
    return torch.stack(chosen).sort(dim=1).values


@pytest.mark.parametrize("shape", [(8, 12, 9), (7, 10, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_voxels_are_those_of_the_patches(shape, dtype):
    hu = volumes(3, *shape).to(dtype)
    keep = some_of(3, grid_shape(shape, PATCH))
    found = patches_of(hu.to(DEVICE), PATCH, keep.to(DEVICE), AIR_HU).cpu()
    assert torch.equal(found, gather_patches(hu, PATCH, keep))


@pytest.mark.parametrize("is_own", [False, True])
@pytest.mark.parametrize("has_power", [False, True])
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0)])
def test_window_channels_are_those_of_torch(is_own, has_power, limits):
    hu = volumes(3, 7, 10, 11)
    keep = some_of(3, grid_shape(hu.shape[1:], PATCH))
    level, width = torch.tensor([40.0, 600.0]), torch.tensor([80.0, 2800.0])
    if is_own:
        level, width = level + torch.tensor([[0.0], [4], [-3]]), width.expand(3, 2)
        level = level.T.contiguous().T  # strides of its own
    power = torch.tensor([0.4, 1.0, 0.7]) if has_power else None
    windows = InputWindows(level, width, power)
    expected = windows.channels(gather_patches(hu, PATCH, keep)).flatten(2)
    expected = (expected + 1) / 2 * (limits[1] - limits[0]) + limits[0]
    where = hu.to(DEVICE), PATCH, keep.to(DEVICE), AIR_HU
    sent = tuple(None if part is None else part.to(DEVICE) for part in windows)
    found = window_patches_of(*where, sent, limits, torch.float32).cpu()
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    half = window_patches_of(*where, sent, limits, torch.bfloat16).cpu()
    torch.testing.assert_close(half.float(), expected, atol=4e-3, rtol=4e-3)


def test_an_encoder_gives_the_same_and_a_gradient_to_hu_where_it_is_asked(monkeypatch):
    torch.manual_seed(0)
    encoder = ViT3D(ENCODERS["demo"]).to(DEVICE).eval()
    hu = volumes(2, 45, 56, 48).to(DEVICE)
    plain = encoder.forward_hu(hu)
    monkeypatch.setattr("headct.views.backend.has_kernels", lambda _: True)
    fused = encoder.forward_hu(hu)
    torch.testing.assert_close(fused.patches, plain.patches, atol=1e-4, rtol=1e-4)
    encoder.forward_hu(hu.requires_grad_()).cls[:, 0].sum().backward()
    assert hu.grad.abs().sum() > 0
