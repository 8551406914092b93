"""How a scanner's numbers stray from HU: one function of a view and a few small factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from headct.views.draws import column, has_kernels, one_by_one, sent
from headct.views.noise import box, boxes
from headct.volume.volume import AIR_HU

_VOXELS_AT_ONCE = 2**16  # stay in the cache from the first factor to the last


class Response(NamedTuple):
    """Factors of n views; on the CPU when drawn."""

    gain: Tensor
    """[n]"""
    offset_hu: Tensor
    """[n]"""
    cupping_hu: Tensor
    """[n] amplitude of the bowl, 0 is off."""
    radius_squared_y: Tensor
    """[n y] part of the squared in-plane radius, which is 1 at the edge of a head."""
    radius_squared_x: Tensor
    """[n x] the other part."""
    band_hu: Tensor
    """[n z] band between the petrous bones, 0 is off."""
    band_width: Tensor
    """[n x] its fall from the midline."""
    noise_hu: Tensor
    """[n z] signed sd, 0 is off."""
    noise_first: Tensor
    """[n] int64, place of the first voxel of the view's noise in the flat bank."""

    def packed(self) -> tuple[Tensor, Tensor]:
        """All factors in the order above as one [n 3+y+2x+2z], and `noise_first`."""
        factors = [part.view(len(part), -1) for part in self[:-1]]
        return torch.cat(factors, dim=1), self.noise_first


def respond(hu: Tensor, response: Response, bank: Tensor) -> Tensor:
    """Views as the scanner would give them.

    Reads as gain x hu + offset + cupping x (min(r^2, 1) - 0.5) + band + noise, not below air.

    Args:
        hu: [n z y x] float32 or float16; may be changed.
        response: factors of the n views.
        bank: [2 z' y' x'] unit noise on the views' device.

    Returns:
        [n z y x] float32.
    """
    if has_kernels(hu.device):
        from headct.views import kernels

        packed, first = (sent(part, hu.device) for part in response.packed())
        return kernels.respond(hu, packed, first, bank)
    hu = hu.to(torch.float32).contiguous()
    if not one_by_one(hu.device):
        return _all_at_once(hu, Response(*(sent(part, hu.device) for part in response)), bank)
    for i, view in enumerate(hu):
        _one(view, Response(*(part[i] for part in response)), bank)
    return hu


def _all_at_once(hu: Tensor, of: Response, bank: Tensor) -> Tensor:
    """Pointwise, with no decision that depends on a value."""
    radius_squared = of.radius_squared_y[:, :, None] + of.radius_squared_x[:, None, :]
    bowl = radius_squared.clamp(max=1.0) - 0.5  # [n y x]
    plane = of.offset_hu[:, None, None] + of.cupping_hu[:, None, None] * bowl
    noise = boxes(bank, of.noise_first, hu.shape[1:])
    hu.mul_(column(of.gain)).add_(plane[:, None])
    hu.addcmul_(_slices(of.band_hu), of.band_width[:, None, None, :])
    return hu.addcmul_(noise, _slices(of.noise_hu)).clamp_(min=AIR_HU)


def _one(hu: Tensor, of: Response, bank: Tensor) -> None:
    """One view [z y x], a few slices after another, without what is off there."""
    plane = of.offset_hu
    if of.cupping_hu != 0:
        radius_squared = of.radius_squared_y[:, None] + of.radius_squared_x
        plane = plane + of.cupping_hu * (radius_squared.clamp_(max=1.0) - 0.5)
    gain, noise = float(of.gain), box(bank, int(of.noise_first), hu.shape)
    at_once = max(1, _VOXELS_AT_ONCE // hu[0].numel())
    for part, band_hu, noise_hu, unit_noise in zip(
        *(torch.split(whole, at_once) for whole in (hu, of.band_hu, of.noise_hu, noise)),
        strict=True,
    ):
        torch.add(plane, part, alpha=gain, out=part)
        if band_hu.any():
            part.addcmul_(band_hu[:, None, None], of.band_width)
        if noise_hu.any():
            part.addcmul_(unit_noise, noise_hu[:, None, None])
        part.clamp_(min=AIR_HU)


def _slices(values: Tensor) -> Tensor:
    """One value for each slice: [n z] -> [n z 1 1]."""
    return values[:, :, None, None]
