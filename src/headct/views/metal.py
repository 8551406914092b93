"""Metal in a view: a clip, a coil or dental work, and the rays it throws through its slices."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headct.config import Config, Count, NotNegative, Positive
from headct.views.cut import Placement
from headct.views.draws import Drawn, Draws, chance, chosen, column, numbers_on, sent, uniform
from headct.volume.volume import MAX_HU


class MetalStreaks(Config):
    """Dark and bright rays from one piece of metal, in the slices around it."""

    probability: float = Field(default=0.03, ge=0, le=1)
    strength_hu: tuple[NotNegative, NotNegative] = (50.0, 300.0)
    """Of a ray where it starts."""
    reach_mm: tuple[Positive, Positive] = (20.0, 60.0)
    """mm, over which a ray falls to a third."""
    height_mm: tuple[Positive, Positive] = (2.0, 8.0)
    """mm, over which the rays fall to a third along z."""
    radius_mm: tuple[Positive, Positive] = (1.5, 4.0)
    """mm, of the metal."""
    n_rays: tuple[Count, Count] = (3, 8)
    """Fewest and most bright rays."""
    within_mm_zyx: tuple[float, float, float] = (80.0, 80.0, 60.0)
    """mm, farthest place of the metal from the centre of the field of view, each axis."""

    def draw(self, rng: Draws, n: int) -> Drawn:
        """Strength (0 is off), size, rays and place."""
        strength = chance(rng, self.probability, n) * uniform(rng, *self.strength_hu, n)
        low, high = self.n_rays
        reach = np.array(self.within_mm_zyx, np.float32)
        return {
            "metal_hu": strength,
            "metal_reach_mm": uniform(rng, *self.reach_mm, n),
            "metal_height_mm": uniform(rng, *self.height_mm, n),
            "metal_radius_mm": uniform(rng, *self.radius_mm, n),
            "metal_rays": np.minimum(np.floor(uniform(rng, low, high + 1, n)), np.float32(high)),
            "metal_angle": uniform(rng, 0.0, 2 * np.pi, n),
            "metal_place": uniform(rng, -1.0, 1.0, (n, 3)) * reach,
        }

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement) -> Tensor:
        """Add rays that turn from bright to dark around the metal, and the metal itself."""
        for rows in chosen(drawn["metal_hu"], hu.device):
            mine = {
                name: sent(values[rows], hu.device)
                for name, values in drawn.items()
                if name.startswith("metal_")
            }
            z, y, x = (
                sent(at.axis_mm(axis)[rows], hu.device) - mine["metal_place"][:, axis, None]
                for axis in range(3)
            )
            z, y, x = z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]
            distance = torch.hypot(y, x)
            rays = torch.cos(
                column(mine["metal_rays"]) * torch.atan2(y, x) + column(mine["metal_angle"])
            )
            rays = rays * torch.exp(-distance / column(mine["metal_reach_mm"]))
            slices = torch.exp(-((z / column(mine["metal_height_mm"])) ** 2))
            inside = z**2 + distance**2 < column(mine["metal_radius_mm"]) ** 2
            there = numbers_on(hu.device, rows)
            streaked = hu[there] + column(mine["metal_hu"]) * slices * rays
            hu[there] = streaked.masked_fill_(inside, MAX_HU).to(hu.dtype)
        return hu
