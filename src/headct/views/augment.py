"""What a scanner does to HU, as augmentations: each draws its parameters.

All work on HU before windowing, in mm, on whatever device the views are. Kernel and slice thickness
are operators per axis (`spread`), so that they merge into the one resampling of `crop`; gain,
cupping, skull base and noise are factors of one function of a view (`response`). Gamma and contrast
curves are left out on purpose: they destroy the meaning of HU.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from headct.config import Config, NotNegative, Positive
from headct.views.cut import Placement, apply_axes
from headct.views.draws import (
    Drawn,
    Draws,
    chance,
    chosen,
    normal,
    numbers_on,
    sent,
    uniform,
)
from headct.views.metal import MetalStreaks
from headct.views.noise import SKULL_BASE_MM, Noise
from headct.views.response import Response, respond
from headct.views.spread import Kernel, SliceThickness
from headct.volume.volume import AIR_HU

HEAD_RADIUS_MM_YX = (95.0, 75.0)
"""Semi-axes of an adult head in an axial slice; the unit of in-plane radius here."""
Weight = Annotated[float, Field(ge=0, le=1)]


class Gain(Config):
    """Calibration error: hu x gain + offset."""

    gain_sd: float = Field(default=0.03, ge=0)
    offset_sd_hu: float = Field(default=3.0, ge=0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Gain and offset of n views."""
        return {
            "gain": 1.0 + normal(rng, self.gain_sd, n),
            "offset_hu": normal(rng, self.offset_sd_hu, n),
        }


class Cupping(Config):
    """Beam hardening: A (r^2 - 0.5) over the axial plane."""

    probability: float = Field(default=0.3, ge=0, le=1)
    amplitude_hu: float = Field(default=6.0, ge=0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Amplitude of n views, 0 is off."""
        amplitude = uniform(rng, -self.amplitude_hu, self.amplitude_hu, n)
        return {"cupping_hu": chance(rng, self.probability, n) * amplitude}


class SkullBase(Config):
    """Dark or bright band between the petrous bones."""

    probability: float = Field(default=0.3, ge=0, le=1)
    band_hu: tuple[float, float] = (-15.0, 8.0)
    height_mm: float = Field(default=8.0, gt=0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Strength (0 is off) and level of the band."""
        return {
            "band_hu": chance(rng, self.probability, n) * uniform(rng, *self.band_hu, n),
            "band_below_top_mm": uniform(rng, *SKULL_BASE_MM, n),
        }

    def band(self, drawn: dict[str, Tensor], at: Placement) -> tuple[Tensor, Tensor]:
        """A Gaussian band in z, HU [n z], and its width [n x]: all of it at the midline."""
        below = at.below_top_mm() - drawn["band_below_top_mm"][:, None]
        # denormal numbers would slow every product
        fall = F.threshold(torch.exp(-((below / self.height_mm) ** 2)), 1e-6, 0.0)
        return drawn["band_hu"][:, None] * fall, torch.exp(-((at.axis_mm(2) / 45.0) ** 2))


class MotionGhost(Config):
    """A faint in-plane copy over part of the slices."""

    probability: float = Field(default=0.1, ge=0, le=1)
    shift_mm: tuple[NotNegative, NotNegative] = (2.0, 5.0)
    weight: tuple[Weight, Weight] = (0.1, 0.3)
    height_mm: tuple[Positive, Positive] = (10.0, 60.0)

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Weight (0 is off), shift, and where along z the head moved."""
        angle = uniform(rng, 0.0, 2 * np.pi, n)
        shift = uniform(rng, *self.shift_mm, n)
        return {
            "ghost_weight": chance(rng, self.probability, n) * uniform(rng, *self.weight, n),
            "ghost_shift_mm": np.stack([shift * np.sin(angle), shift * np.cos(angle)], 1),
            "ghost_height_mm": uniform(rng, *self.height_mm, n),
            "ghost_place": uniform(rng, 0.0, 1.0, n),
        }

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement) -> Tensor:
        """Mix the view with its shifted copy inside the band."""
        if not drawn["ghost_weight"].any():
            return hu
        below = at.below_top_mm()
        span = below[:, -1:] - below[:, :1]
        middle = below[:, :1] + drawn["ghost_place"][:, None] * span
        inside = (below - middle).abs() < drawn["ghost_height_mm"][:, None] / 2
        weight = (inside * drawn["ghost_weight"][:, None])[:, :, None, None]
        for rows in chosen(drawn["ghost_weight"], hu.device):
            shift_mm = sent(drawn["ghost_shift_mm"][rows], hu.device)
            shifts = [
                _shift_operator(shift_mm[:, i], size, mm).to(hu.dtype)
                for i, (size, mm) in enumerate(
                    zip(hu.shape[2:], at.spacing_mm_zyx[1:], strict=True)
                )
            ]
            share = sent(weight[rows].to(hu.dtype), hu.device)
            there = numbers_on(hu.device, rows)
            hu[there] = hu[there].lerp_(apply_axes(hu[there], [None, *shifts]), share)
        return hu


class Erase(Config):
    """Table and head-holder erased: thin things at the rim become air."""

    probability: float = Field(default=0.3, ge=0, le=1)
    around_mm: float = Field(default=13.0, gt=0)
    """mm, edge of the box that decides whether a voxel belongs to something thin."""

    def draw(self, rng: Draws, n: int) -> Drawn:
        """On or off."""
        return {"erase": chance(rng, self.probability, n)}

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement) -> Tensor:
        """Set to air what lies outside an adult head and has mostly air around it."""
        if not drawn["erase"].any():
            return hu
        boxes = [
            _box_operator(n, self.around_mm / mm, hu.device)[None].to(hu.dtype)
            for n, mm in zip(hu.shape[1:], at.spacing_mm_zyx, strict=True)
        ]
        for rows in chosen(drawn["erase"], hu.device):
            there = numbers_on(hu.device, rows)
            solid = (hu[there] > -500).to(hu.dtype)
            around = apply_axes(solid, [box.expand(len(solid), -1, -1) for box in boxes])
            y, x = (sent(part[rows], hu.device) for part in _radius_squared(at))
            outside = y[:, None, :, None] + x[:, None, None, :] > 0.8
            thin = around.lt(0.4).logical_and_(outside)
            hu[there] = hu[there].masked_fill_(thin, float(AIR_HU))
        return hu


class AugmentConfig(Config):
    """The scanner augmentations of a recipe; a probability or sd of 0 switches one off."""

    gain: Gain = Gain()
    kernel: Kernel = Kernel()
    slice_thickness: SliceThickness = SliceThickness()
    cupping: Cupping = Cupping()
    skull_base: SkullBase = SkullBase()
    motion_ghost: MotionGhost = MotionGhost()
    noise: Noise = Noise()
    erase: Erase = Erase()
    metal: MetalStreaks = MetalStreaks()

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Parameters of all augmentations for n views."""
        drawn: Drawn = {}
        for name in type(self).model_fields:
            drawn |= getattr(self, name).draw(rng, n)
        return drawn

    def spread(
        self, drawn: dict[str, Tensor], at: Placement, device: torch.device
    ) -> list[Tensor | None]:
        """The point spread per axis (z, y, x) on a device, for `cut`."""
        (z, y, x), (mm_z, mm_y, mm_x) = at.shape_zyx, at.spacing_mm_zyx
        return [
            self.slice_thickness.operator(drawn, z, mm_z, device),
            self.kernel.operator(drawn, y, mm_y, device),
            self.kernel.operator(drawn, x, mm_x, device),
        ]

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement, bank: Tensor) -> Tensor:
        """Everything but the point spread, in the order in which a scanner would do it.

        Args:
            hu: [n z y x] float32 or float16; may be changed.
            drawn: parameters of the n views.
            at: where they lie.
            bank: of the noise.

        Returns:
            [n z y x] float32.
        """
        hu = self.erase.apply(hu, drawn, at)
        hu = self.motion_ghost.apply(hu, drawn, at)
        hu = self.metal.apply(hu, drawn, at)
        return respond(hu, self.response(drawn, at, bank), bank)

    def response(self, drawn: dict[str, Tensor], at: Placement, bank: Tensor) -> Response:
        """Gain, cupping, skull base and noise as the factors of `respond`, on the CPU."""
        radius_squared_y, radius_squared_x = _radius_squared(at)
        band_hu, band_width = self.skull_base.band(drawn, at)
        return Response(
            gain=drawn["gain"],
            offset_hu=drawn["offset_hu"],
            cupping_hu=drawn["cupping_hu"],
            radius_squared_y=radius_squared_y,
            radius_squared_x=radius_squared_x,
            band_hu=band_hu,
            band_width=band_width,
            noise_hu=self.noise.strength(drawn, at),
            noise_first=self.noise.first(drawn, at, bank),
        )


def _radius_squared(at: Placement) -> tuple[Tensor, Tensor]:
    """[n y] and [n x]; their sum is the squared in-plane radius from the source's centre."""
    y, x = (
        (at.axis_mm(axis) / radius_mm) ** 2
        for axis, radius_mm in zip((1, 2), HEAD_RADIUS_MM_YX, strict=True)
    )
    return y, x


def _shift_operator(shift_mm: Tensor, size: int, spacing_mm: float) -> Tensor:
    """[n size size] linear shift along one axis; the edge voxel is repeated."""
    voxel = torch.arange(size, device=shift_mm.device)
    source = (voxel + shift_mm[:, None] / spacing_mm).clamp(0, size - 1)
    return (1 - (source[:, :, None] - voxel).abs()).clamp(min=0)


def _box_operator(size: int, width_voxels: float, device: torch.device) -> Tensor:
    """[size size] mean over a centred box of at least 3 voxels."""
    voxel = torch.arange(size, device=device)
    near = (voxel[:, None] - voxel).abs() <= max(1, int(width_voxels / 2))
    return near / near.sum(-1, keepdim=True)
