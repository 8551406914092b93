"""Patch embedding for another voxel size: the same patch in mm, cut into other voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from headct.model.encoder import ViT3D
from headct.model.tokens import ZyxInt


def with_patch_voxels(encoder: ViT3D, patch_voxels_zyx: ZyxInt) -> ViT3D:
    """The encoder for scans of another voxel size; a patch stays the same box in mm.

    The new kernel answers to a resampled patch as the old one did to the original: exactly where
    patches get finer, in least squares where they get coarser.

    Args:
        encoder: not changed.
        patch_voxels_zyx: voxels per patch from now on; the voxel size follows.

    Source:
        Beyer et al. 2023 (FlexiViT), section 3.4.
    """
    old = encoder.config
    spacing = [
        mm / n for mm, n in zip(old.patch_mm_zyx, patch_voxels_zyx, strict=True)
    ]  # the patch keeps its mm
    config = old.model_copy(
        update={"patch_voxels_zyx": patch_voxels_zyx, "spacing_mm_zyx": tuple(spacing)}
    )
    new = ViT3D(config)
    weights = encoder.state_dict()
    kernel = weights["patch_embed.weight"]
    shape = (len(kernel), len(old.windows), *old.patch_voxels_zyx)
    resized = resize_kernel(kernel.view(shape), patch_voxels_zyx)
    new.load_state_dict(weights | {"patch_embed.weight": resized.flatten(1)})
    return new.to(kernel.device).train(encoder.training)


def resize_kernel(kernel: Tensor, patch_voxels_zyx: ZyxInt) -> Tensor:
    """A kernel [d c z y x] for patches of other voxels: [d c z' y' x']."""
    for axis, size in enumerate(patch_voxels_zyx, start=2):
        inverse = torch.linalg.pinv(interpolation(kernel.shape[axis], size))  # [old new]
        kernel = (kernel.movedim(axis, -1).double() @ inverse.to(kernel.device)).movedim(-1, axis)
    return kernel.float().contiguous()


def interpolation(size: int, new_size: int) -> Tensor:
    """Linear interpolation of one axis as a matrix [new_size, size], float64."""
    basis = torch.eye(size, dtype=torch.float64)[None]  # [1 size size]: each row a unit signal
    lines = F.interpolate(basis, size=new_size, mode="linear", align_corners=False)
    return lines[0].T
