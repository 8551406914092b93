"""Small constants on a device, made once: copying one waits for all that a GPU has been given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def constant(
    values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers as a tensor [n] that all callers share: never change it in place."""
    return _made(tuple(values), device, dtype)


@cache
def _made(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # gradients may flow past it later
        return torch.tensor(values, dtype=dtype, device=device)
