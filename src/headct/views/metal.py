"""Metal in a view: a clip, a coil or dental work, and the rays it throws through its slices."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headct.config import Config
from headct.views.cut import Placement
from headct.views.draws import Drawn, chance, uniform
from headct.volume.volume import MAX_HU


class MetalStreaks(Config):
    """Dark and bright rays from one piece of metal, in the slices around it."""

    probability: float = Field(default=0.03, ge=0, le=1)
    strength_hu: tuple[float, float] = (50.0, 300.0)
    """Of a ray where it starts."""
    reach_mm: tuple[float, float] = (20.0, 60.0)
    """mm, over which a ray falls to a third."""
    height_mm: tuple[float, float] = (2.0, 8.0)
    """mm, over which the rays fall to a third along z."""
    radius_mm: tuple[float, float] = (1.5, 4.0)
    """mm, of the metal."""
    n_rays: tuple[int, int] = (3, 8)
    """Fewest and most bright rays."""
    within_mm_zyx: tuple[float, float, float] = (80.0, 80.0, 60.0)
    """mm, farthest place of the metal from the centre of the field of view, each axis."""

    def draw(self, rng: np.random.Generator, n: int) -> Drawn:
        """Strength (0 is off), size, rays and place."""
        strength = chance(rng, self.probability, n) * uniform(rng, *self.strength_hu, n)
        low, high = self.n_rays
        reach = np.array(self.within_mm_zyx, np.float32)
        return {
            "metal_hu": strength,
            "metal_reach_mm": uniform(rng, *self.reach_mm, n),
            "metal_height_mm": uniform(rng, *self.height_mm, n),
            "metal_radius_mm": uniform(rng, *self.radius_mm, n),
            "metal_rays": np.floor(uniform(rng, low, high + 1, n)),
            "metal_angle": uniform(rng, 0.0, 2 * np.pi, n),
            "metal_place": uniform(rng, -1.0, 1.0, (n, 3)) * reach,
        }

    def apply(self, hu: Tensor, drawn: dict[str, Tensor], at: Placement) -> Tensor:
        """Add rays that turn from bright to dark around the metal, and the metal itself."""
        for i in drawn["metal_hu"].nonzero()[:, 0].tolist():
            z, y, x = (at.axis_mm(axis)[i] - drawn["metal_place"][i, axis] for axis in range(3))
            distance = torch.hypot(y[:, None], x)
            turn = torch.atan2(y[:, None], x + torch.zeros_like(y)[:, None])
            rays = torch.cos(drawn["metal_rays"][i] * turn + drawn["metal_angle"][i])
            rays = rays * torch.exp(-distance / drawn["metal_reach_mm"][i])
            slices = torch.exp(-((z / drawn["metal_height_mm"][i]) ** 2))
            hu[i] += drawn["metal_hu"][i] * slices[:, None, None] * rays
            radius = drawn["metal_radius_mm"][i]
            inside = z[:, None, None] ** 2 + distance**2 < radius**2
            hu[i].masked_fill_(inside, MAX_HU)
        return hu
