"""A resized patch embedding answers to the same anatomy in the same way."""

from __future__ import annotations

import torch

from headct.model.architecture import ENCODERS
from headct.model.encoder import ViT3D
from headct.model.resize import interpolation, resize_kernel, with_patch_voxels

TINY = ENCODERS["demo"].model_copy(update={"width": 48, "depth": 2, "heads": 3})


def resampled(patches: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """[n c z y x] -> [n c z' y' x'], linear along each axis."""
    for axis, size in enumerate(shape, start=2):
        matrix = interpolation(patches.shape[axis], size).float()
        patches = (patches.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return patches


def test_finer_patches_give_the_same_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, 4, 4, 4, generator=generator)
    patches = torch.randn(7, 3, 4, 4, 4, generator=generator)
    finer = resize_kernel(kernel, (8, 4, 6))
    expected = patches.flatten(1) @ kernel.flatten(1).T
    answer = resampled(patches, (8, 4, 6)).flatten(1) @ finer.flatten(1).T
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3)


def test_coarser_patches_give_nearly_the_same_answer_to_smooth_anatomy() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(40, 1, 4, 4, 4, generator=generator)
    smooth = resampled(coarse, (8, 8, 8))
    kernel = torch.randn(5, 1, 8, 8, 8, generator=generator)
    expected = smooth.flatten(1) @ kernel.flatten(1).T
    back = torch.linalg.pinv(interpolation(4, 8)).float()
    again = torch.einsum("nczyx,Zz,Yy,Xx->ncZYX", smooth, back, back, back)
    torch.testing.assert_close(again, coarse, rtol=1e-3, atol=1e-3)
    answer = resampled(smooth, (4, 4, 4)).flatten(1) @ resize_kernel(kernel, (4, 4, 4)).flatten(1).T
    agreement = torch.corrcoef(torch.stack([answer.flatten(), expected.flatten()]))[0, 1]
    assert agreement > 0.9


def test_the_encoder_goes_on_with_the_same_patch_in_mm() -> None:
    torch.manual_seed(0)
    encoder = ViT3D(TINY).eval()
    finer = with_patch_voxels(encoder, (16, 8, 8))
    assert finer.config.patch_mm_zyx == encoder.config.patch_mm_zyx
    assert finer.config.spacing_mm_zyx == (1.65, 3.3, 3.3)
    channels = torch.rand(1, 3, 16, 16, 16)
    blocks = channels.unflatten(2, (2, 8))
    fine = torch.stack([resampled(blocks[:, :, i], (16, 16, 16)) for i in (0, 1)], 2)
    one, other = encoder(channels), finer(fine.flatten(2, 3))
    torch.testing.assert_close(one.cls, other.cls, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.centre_mm, other.centre_mm)
    same = with_patch_voxels(encoder, (8, 8, 8))
    torch.testing.assert_close(same(channels).cls, one.cls, rtol=1e-4, atol=1e-4)
