"""Quantum noise from a fixed bank, cut at a drawn place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headct.config import Config
from headct.views.cut import Placement, apply_axes
from headct.views.draws import Drawn, Draws, chance, sent, touched, uniform

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

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement, bank: Tensor) -> Tensor:
        """Add noise from the bank [2 z y x] (white, smoothed; unit sd)."""
        sizes = zip(bank.shape[1:], hu.shape[1:], strict=True)
        room = torch.tensor([b - n + 1 for b, n in sizes])
        start = (drawn["noise_place"] * room).minimum(room - 1).long()
        kind = drawn["noise_smooth"].long()
        middle = sum(SKULL_BASE_MM) / 2
        near = torch.exp(-(((at.below_top_mm() - middle) / 25.0) ** 2))
        profile = 1 + (self.skull_base_gain - 1) * near
        strength = drawn["noise_sd_hu"][:, None] * profile  # [n z]
        for rows in touched(drawn["noise_sd_hu"], hu.device):
            noise = cut_from(bank, kind[rows], start[rows], hu.shape[1:])
            hu[rows].addcmul_(noise, sent(strength[rows, :, None, None], hu.device))
        return hu

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


def cut_from(bank: Tensor, kind: Tensor, start: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    """Boxes [m z y x] of a bank [k z' y' x'], each at its kind [m] and start [m 3] in voxels."""
    if len(kind) == 1:  # a view, nothing is copied
        z, y, x = (slice(a, a + n) for a, n in zip(start[0].tolist(), shape_zyx, strict=True))
        return bank[int(kind), z, y, x][None]
    kind, start = sent(kind, bank.device), sent(start, bank.device)
    at = [
        start[:, axis, None] + torch.arange(n, device=bank.device)
        for axis, n in enumerate(shape_zyx)
    ]
    return bank[
        kind[:, None, None, None],
        at[0][:, :, None, None],
        at[1][:, None, :, None],
        at[2][:, None, None, :],
    ]


def _periodic_blur(size: int, sigma_voxels: float) -> Tensor:
    """[1 size size] Gaussian blur on a ring."""
    apart = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    apart = torch.minimum(apart, size - apart)
    blur = torch.exp(-0.5 * (apart / sigma_voxels) ** 2)
    return (blur / blur.sum(-1, keepdim=True))[None]
