"""The scanner's point spread, as operators per axis: kernel in plane, slice thickness along z."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from headct.config import Config, NotNegative, Positive
from headct.views.draws import Drawn, Draws, chance, one_by_one, sent, uniform


class Kernel(Config):
    """Reconstruction kernel: Gaussian blur in plane, or sharpening."""

    probability: float = Field(default=0.5, ge=0, le=1)
    sigma_mm: tuple[Positive, Positive] = (0.3, 1.2)
    unsharp_amount: float = Field(default=0.6, ge=0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Sigma and amount; a negative amount blurs, a positive one sharpens, 0 is off."""
        on = chance(rng, self.probability, n)
        sharpen = uniform(rng, 0.0, self.unsharp_amount, n)
        amount = np.where(rng.random(n) < 0.5, sharpen, -1.0).astype(np.float32)
        return {"kernel_sigma_mm": uniform(rng, *self.sigma_mm, n), "kernel_amount": on * amount}

    def operator(
        self, drawn: dict[str, Tensor], size: int, spacing_mm: float, device: torch.device
    ) -> Tensor | None:
        """[n size size] I + amount (I - G) along one in-plane axis; None where no view has it."""
        if not drawn["kernel_amount"].any() and (self.probability == 0 or one_by_one(device)):
            return None
        apart = torch.arange(1 - size, size).abs() * spacing_mm
        fall = torch.exp(-0.5 * (apart / drawn["kernel_sigma_mm"][:, None]) ** 2)
        fall = F.threshold(fall, 1e-6, 0.0)  # denormal numbers would slow every product
        amount = sent(drawn["kernel_amount"], device)[:, None]
        blur = sent(fall, device).unfold(1, size, 1)  # the last row first; nothing is copied
        operator = blur.flip(1).mul_((-amount / blur.sum(-1))[:, :, None])
        operator.diagonal(dim1=1, dim2=2).add_(1 + amount)
        return operator


class SliceThickness(Config):
    """Thick slices: box average along z, sampled once per slice, interpolated back."""

    probability: float = Field(default=0.5, ge=0, le=1)
    thickness_mm: tuple[NotNegative, NotNegative] = (2.5, 8.0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Thickness (0 is off) and phase of the slices."""
        thickness = chance(rng, self.probability, n) * uniform(rng, *self.thickness_mm, n)
        return {"slice_mm": thickness, "slice_phase": uniform(rng, 0.0, 1.0, n)}

    def operator(
        self, drawn: dict[str, Tensor], size: int, spacing_mm: float, device: torch.device
    ) -> Tensor | None:
        """[n size size] along z; the identity where slices are thinner than voxels."""
        thick = drawn["slice_mm"] > spacing_mm
        if not thick.any() and (self.probability == 0 or one_by_one(device)):
            return None
        thickness = drawn["slice_mm"].clamp(min=spacing_mm)[:, None]
        n_slices = int(size * spacing_mm / max(self.thickness_mm[0], spacing_mm)) + 2
        voxel = (torch.arange(size, device=thick.device) + 0.5) * spacing_mm  # centres, mm
        number = torch.arange(n_slices, device=thick.device)
        slices = (number + drawn["slice_phase"][:, None] - 0.5) * thickness  # [n s] centres, mm
        apart = (slices[:, :, None] - voxel).abs_()  # [n s z] mm
        half_sum = (thickness + spacing_mm)[:, :, None] / 2
        average = (half_sum - apart).clamp_(0, spacing_mm)  # overlap, mm
        lengths = average.sum(-1, keepdim=True)
        average /= lengths.clamp(min=1e-6)
        back = apart.div_(-thickness[:, :, None]).add_(1).clamp_(min=0).mul_(lengths > 0)
        back /= back.sum(1, keepdim=True).clamp(min=1e-6)
        one = torch.eye(size, device=thick.device)
        return sent(torch.where(thick[:, None, None], back.mT @ average, one), device)
