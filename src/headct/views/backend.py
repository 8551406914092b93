"""Whether a device runs our own kernels for what is done with every voxel, or torch's operations.

The kernels are `views.kernels`, `model.patch_kernel` and `model.rotation_kernel`; both ways give
the same.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def why_no_kernels(device: torch.device) -> str | None:
    """Why torch's operations are used on a device; None where the kernels are.

    Triton, which comes with torch for CUDA, builds what it needs when it is first used: for that it
    looks for a C compiler, Python's headers and a folder to write to.
    """
    if device.type != "cuda":
        return "no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "the GPU is older than compute capability 7.0"
    try:
        from headct.views.kernels import try_out

        try_out(device)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def has_kernels(device: torch.device) -> bool:
    """Whether the kernels are used on a device."""
    return why_no_kernels(device) is None


def for_kernels(volume: Tensor) -> bool:
    """Whether they are used for a volume: they pass no gradient back to it."""
    return has_kernels(volume.device) and not (torch.is_grad_enabled() and volume.requires_grad)
