"""Windows of the input while training: jittered, so that no encoder leans on their exact edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from headct.config import Config
from headct.model.tokens import InputWindows, window_tensors
from headct.volume.window import Window


class WindowContrast(Config):
    """A power of each channel's share of its window, as FM-CT does.

    It takes away what HU mean, so that our own recipes leave it out.
    """

    probability: float = Field(default=0.0, ge=0, le=1)
    """Share of the views."""
    gamma: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest power."""

    @model_validator(mode="after")
    def _powers_rise(self) -> WindowContrast:
        if not 0 < self.gamma[0] <= self.gamma[1]:
            raise ValueError(f"gamma {self.gamma} is not 0 < smallest <= largest")
        return self

    def draw(self, n: int, device: torch.device) -> Tensor | None:
        """Powers [n] from torch's default generator; 1 where there is none."""
        if self.probability == 0:
            return None
        low, high = self.gamma
        power = low + (high - low) * torch.rand(n, device=device)
        return torch.where(torch.rand(n, device=device) < self.probability, power, 1.0)


def draw_windows(
    windows: Sequence[Window],
    jitter: tuple[float, float],
    contrast: WindowContrast,
    n: int,
    device: torch.device,
) -> InputWindows:
    """Windows of n views, from torch's default generator.

    Args:
        windows: c of them.
        jitter: largest shift of a level as a share of its width, and largest logarithm of the
            change of a width.
        contrast: of the channels.
        n: views.
        device: of the views.
    """
    level_hu, width_hu = window_tensors(windows, device)
    shift, stretch = jitter
    draws = 2.0 * torch.rand(2, n, len(level_hu), device=device) - 1.0
    level_hu = level_hu + shift * draws[0] * width_hu
    return InputWindows(
        level_hu, width_hu * torch.exp(stretch * draws[1]), contrast.draw(n, device)
    )
