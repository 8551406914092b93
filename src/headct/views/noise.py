"""Quantum noise from a fixed bank, cut at a drawn place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headct.config import Config
from headct.views.cut import Placement, apply_axes
from headct.views.draws import Drawn, Draws, chance, uniform

SKULL_BASE_MM = (105.0, 130.0)
"""mm from the top of the field of view to the petrous bones (vertex margin 8, scalp and skull 12,
vertex to floor of the middle fossa 85 to 110)."""


class Noise(Config):
    """Quantum noise, white or correlated, stronger near the skull base.

    It comes from a fixed bank, cut at a drawn place with a drawn sign: the same on every device,
    and cheaper than drawing millions of numbers per step.
    """

    probability: float = Field(default=0.8, ge=0, le=1)
    sd_hu: float = Field(default=8.0, ge=0)
    smooth_share: float = Field(default=0.5, ge=0, le=1)
    smooth_fwhm_mm: float = Field(default=3.0, gt=0)
    """mm, correlation of smoothed noise; at least 1.5 voxels."""
    skull_base_gain: float = Field(default=1.5, ge=1)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Strength (0 is off), kind, sign and place in the bank."""
        sign = np.where(rng.random(n) < 0.5, np.float32(-1), np.float32(1))
        return {
            "noise_sd_hu": chance(rng, self.probability, n)
            * uniform(rng, 0.0, self.sd_hu, n)
            * sign,
            "noise_smooth": chance(rng, self.smooth_share, n),
            "noise_place": uniform(rng, 0.0, 1.0, (n, 3)),
        }

    def strength(self, drawn: dict[str, Tensor], at: Placement) -> Tensor:
        """[n z] signed sd, HU."""
        middle = sum(SKULL_BASE_MM) / 2
        near = torch.exp(-(((at.below_top_mm() - middle) / 25.0) ** 2))
        profile = 1 + (self.skull_base_gain - 1) * near
        return drawn["noise_sd_hu"][:, None] * profile

    def first(self, drawn: dict[str, Tensor], at: Placement, bank: Tensor) -> Tensor:
        """[n] int64, place in a flat bank [2 z y x] of the first voxel of each view's noise."""
        sizes = bank.shape[1:]
        room = torch.tensor([b - n + 1 for b, n in zip(sizes, at.shape_zyx, strict=True)])
        z, y, x = (drawn["noise_place"] * room).minimum(room - 1).long().unbind(1)
        return ((drawn["noise_smooth"].long() * sizes[0] + z) * sizes[1] + y) * sizes[2] + x

    def bank(
        self, source_shape_zyx: tuple[int, int, int], spacing_mm_zyx: tuple[float, ...]
    ) -> Tensor:
        """[2 z y x] white and smoothed unit noise, half as large again as the field of view."""
        shape = tuple(n + n // 2 for n in source_shape_zyx)
        white = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))[None]
        fwhm = [max(self.smooth_fwhm_mm, 1.5 * mm) for mm in spacing_mm_zyx]
        smooth = apply_axes(
            white,
            [
                _periodic_blur(n, width / 2.355 / mm)
                for n, width, mm in zip(shape, fwhm, spacing_mm_zyx, strict=True)
            ],
        )
        return torch.cat([white, smooth / smooth.std()])


def box(bank: Tensor, first: int, shape_zyx: Sequence[int]) -> Tensor:
    """The box [z y x] of a bank [k z' y' x'] from a place in the flat bank; nothing is copied."""
    return bank.as_strided(tuple(shape_zyx), bank.stride()[1:], first)


def boxes(bank: Tensor, first: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """As `box` for places [n] on the bank's device: [n z y x], gathered by rows along x."""
    z, y, x = shape_zyx
    step_z, step_y, _ = bank.stride()[1:]
    slices, lines = (torch.arange(n, device=bank.device) for n in (z, y))
    rows = first[:, None, None] + slices[:, None] * step_z + lines * step_y  # [n z y]
    windows = bank.flatten().unfold(0, x, 1)  # a row from every voxel on; nothing is copied
    return windows.index_select(0, rows.flatten()).view(-1, z, y, x)


def _periodic_blur(size: int, sigma_voxels: float) -> Tensor:
    """[1 size size] Gaussian blur on a ring."""
    apart = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    apart = torch.minimum(apart, size - apart)
    blur = torch.exp(-0.5 * (apart / sigma_voxels) ** 2)
    return (blur / blur.sum(-1, keepdim=True))[None]
