"""How a scanner's numbers stray from HU: one function of a view and a few small factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from headct.views.backend import has_kernels
from headct.views.draws import column, one_by_one, sent
from headct.views.noise import box, boxes
from headct.volume.volume import AIR_HU


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
    gains = response.gain.tolist()
    with_cupping, with_band, with_noise = (
        factor.flatten(1).any(1).tolist()
        for factor in (response.cupping_hu[:, None], response.band_hu, response.noise_hu)
    )
    for i, view in enumerate(hu):
        plane = _plane(response, i) if with_cupping[i] else response.offset_hu[i]
        torch.add(plane, view, alpha=gains[i], out=view)
        if with_band[i]:
            view.addcmul_(response.band_hu[i, :, None, None], response.band_width[i])
        if with_noise[i]:
            noise = box(bank, int(response.noise_first[i]), view.shape)
            view.addcmul_(noise, response.noise_hu[i, :, None, None])
        view.clamp_(min=AIR_HU)
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


def _plane(of: Response, view: int) -> Tensor:
    """[y x] offset and cupping of one view."""
    radius_squared = of.radius_squared_y[view, :, None] + of.radius_squared_x[view]
    return of.offset_hu[view] + of.cupping_hu[view] * (radius_squared.clamp_(max=1.0) - 0.5)


def _slices(values: Tensor) -> Tensor:
    """One value for each slice: [n z] -> [n z 1 1]."""
    return values[:, :, None, None]
