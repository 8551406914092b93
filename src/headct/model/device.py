"""Where a trained model computes."""

from __future__ import annotations

from typing import Literal

import torch

from headct.errors import UsageError


def choose_device(asked: Literal["cpu", "cuda"] | None = None) -> torch.device:
    """The device asked for; without one a GPU where there is one.

    Raises:
        UsageError: a GPU was asked for and torch can use none.
    """
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise UsageError("there is no GPU that torch can use", remedy="leave out --device cuda")
    return torch.device(asked or ("cuda" if has_gpu else "cpu"))
