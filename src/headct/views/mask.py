"""Which of the computed tokens the student does not see."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from headct.config import Config
from headct.views.constants import constant
from headct.views.draws import Drawn, Draws, chance, sent, uniform

HEAD_ABOVE_HU = -500

Shape = tuple[int, int, int]


class MaskConfig(Config):
    """Masking of global views."""

    ratio: tuple[float, float] = (0.5, 0.8)
    """Share of the computed tokens that is removed, drawn once per batch."""
    block_share: float = Field(default=0.5, ge=0, le=1)
    """Share of views that keep one contiguous region; the others keep random tokens."""

    @model_validator(mode="after")
    def _ratio_rises(self) -> MaskConfig:
        low, high = self.ratio
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"ratio {self.ratio} is not 0 <= smallest <= largest <= 1")
        return self

    def draw(self, rng: Draws, n: int, n_tokens: int) -> Drawn:
        """Numbers from which `draw_mask` of n views follows."""
        return {
            "mask_block": chance(rng, self.block_share, n),
            "mask_score": uniform(rng, 0.0, 1.0, (n, n_tokens)),
            "mask_centre": uniform(rng, 0.0, 1.0, n),
            "mask_stretch": np.exp(uniform(rng, -0.5, 0.5, (n, 3))),
        }

    def draw_n_masked(self, rng: np.random.Generator, n_tokens: int) -> int:
        """Tokens removed from every view of one batch; at least one token stays."""
        ratio = rng.uniform(*self.ratio)
        return 0 if ratio <= 0 else int(np.clip(round(ratio * n_tokens), 1, n_tokens - 1))


def patch_occupancy(hu: Tensor, patch_voxels_zyx: Shape) -> Tensor:
    """Share of each patch's voxels above -500 HU: [n z y x] -> [n gz gy gx].

    A part of a patch at the far end counts as one, with air beyond the volume.
    """
    if hu.device.type == "cpu" and len(hu) > 1:  # one after another, in the cache
        return torch.cat([patch_occupancy(one, patch_voxels_zyx) for one in hu[:, None]])
    (pz, py, px), n = patch_voxels_zyx, len(hu)
    head = _above(hu, HEAD_ABOVE_HU)
    missing = [-size % p for size, p in zip(hu.shape[1:], patch_voxels_zyx, strict=True)]
    if any(missing):
        head = F.pad(head, (0, missing[2], 0, missing[1], 0, missing[0]))
    _, z, y, x = head.shape
    in_bytes = pz * py < 256
    ones = head.view(torch.int64 if in_bytes and x % 8 == 0 else torch.uint8)  # eight at a time
    counting = ones.dtype if in_bytes else torch.int32
    in_z = ones.view(n, z // pz, pz, -1).sum(2, dtype=counting)
    in_y = in_z.view(n, z // pz, y // py, py, -1).sum(3, dtype=counting)
    counts = in_y.view(torch.uint8 if in_bytes else counting)
    counts = counts.view(n, z // pz, y // py, x // px, px).sum(4, dtype=torch.float32)
    return counts / (pz * py * px)


def _above(hu: Tensor, level_hu: int) -> Tensor:
    if hu.device.type == "cpu" and hu.dtype in (torch.int16, torch.float32):
        return torch.from_numpy(hu.numpy() > level_hu)  # four times faster than torch's
    return hu > level_hu


def draw_mask(keep: Tensor, grid_zyx: Shape, drawn: dict[str, Tensor], n_masked: int) -> Tensor:
    """Mask over the computed tokens of each view.

    Random views lose the tokens with the largest scores. Block views keep the tokens nearest to a
    random centre on the patch grid closed to a torus (an inverse block, rolled).

    Args:
        keep: [n t] flat patch index of the computed tokens.
        grid_zyx: patches of a view per axis.
        drawn: what `MaskConfig.draw` gave, [n ...] tensors, on any device.
        n_masked: tokens to remove from every view.

    Returns:
        [n t] bool, True = removed; every row has `n_masked` of them.
    """
    names = ("mask_score", "mask_block", "mask_centre", "mask_stretch")
    drawn = drawn | {"mask_score": drawn["mask_score"][:, : keep.shape[1]]}
    drawn = {name: sent(drawn[name], keep.device) for name in names}
    score = drawn["mask_score"]
    block = drawn["mask_block"][:, None] > 0
    rank = torch.where(block, _block_distance(keep, grid_zyx, drawn) + 1e-3 * score, score)
    removed = rank.topk(n_masked, dim=1, sorted=False).indices
    return torch.zeros_like(keep, dtype=torch.bool).scatter_(1, removed, True)


def unravel(index: Tensor, grid_zyx: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Patch numbers -> their places along z, y and x."""
    _, n_y, n_x = grid_zyx
    return index // (n_y * n_x), index // n_x % n_y, index % n_x


def _block_distance(keep: Tensor, grid_zyx: Shape, drawn: dict[str, Tensor]) -> Tensor:
    """[n t] stretched distance of each token from the view's centre token, around the torus."""
    size = constant(grid_zyx, keep.device, torch.int64)
    place = torch.stack(unravel(keep, grid_zyx), dim=-1)  # [n t 3]
    chosen = (drawn["mask_centre"] * keep.shape[1]).long()
    centre = place[torch.arange(len(keep), device=keep.device), chosen]
    apart = (place - centre[:, None]).abs()
    apart = torch.minimum(apart, size - apart) * drawn["mask_stretch"][:, None]
    return apart.square().sum(-1).sqrt()
