"""Masked prediction: voxels (L_pix) and features (L_lat) of patches the student never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from headct.config import Config
from headct.errors import UsageError
from headct.model.tokens import to_channels, window_tensors
from headct.views.constants import constant
from headct.volume.window import Window


class TermConfig(Config):
    """A summand of the loss and its weight over the run."""

    weight: float = Field(ge=0.0)
    """Full weight; 0 switches the term off, and nothing of it is built."""
    ramp: tuple[float, float] = (0.0, 0.0)
    """Shares of the run between which the weight rises from 0, linearly; (0, 0): full at once."""

    @model_validator(mode="after")
    def _ramp_rises(self) -> TermConfig:
        start, end = self.ramp
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"ramp {self.ramp} is not start <= end, both shares of the run")
        return self

    def weight_at(self, step_fraction: float) -> float:
        """The weight after a share of the run; while it is 0 the term is not computed."""
        start, end = self.ramp
        if step_fraction >= end:
            return self.weight
        if step_fraction <= start:
            return 0.0
        return self.weight * (step_fraction - start) / (end - start)


class MaeConfig(TermConfig):
    """L_pix: window channels of masked patches, weighted by tissue."""

    weight: float = Field(default=1.0, ge=0.0)
    predicted_fraction: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the masked patches that is predicted, drawn at random each step."""
    visible_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the visible patches that is predicted as well, each from its own token: what is in a
    patch then has to be in there, and not only what its neighbours need of it (decision 0034)."""
    saturated_weight: float = Field(default=0.03, ge=0.0, le=1.0)
    """Weight of a voxel that lies outside the window, against 1 inside it."""
    channel_weights: tuple[float, ...] = (1.0, 1.0, 0.3)
    """Weight of each window."""
    normalised: bool = False
    """Predict each patch less its mean and over its deviation, the better variant of published MAE.
    Ours does not: the level in HU is the finding."""


class LatConfig(TermConfig):
    """L_lat: the teacher's features of masked patches."""

    weight: float = Field(default=0.5, ge=0.0)
    ramp: tuple[float, float] = (0.1, 0.3)
    last_blocks: int | None = Field(default=None, gt=0)
    """Blocks whose outputs are averaged as the target; None: 3 at depth >= 12, else 1."""


def pixel_loss(
    predicted: Tensor, voxels_hu: Tensor, windows: Sequence[Window], config: MaeConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_pix, and per window its error and the share of the best constant patch's.

    Args:
        predicted: [n q c*v] of the decoder.
        voxels_hu: [n q v] what is there.
        windows: c of them.
        config: weights of voxels and windows.
    """
    target = to_channels(voxels_hu.float(), *window_tensors(windows, voxels_hu.device))  # [n q c v]
    predicted = predicted.view_as(target)
    weight = tissue_weights(target, config.saturated_weight)
    if config.normalised:
        target = (target - patch_mean(target)) / patch_deviation(target)
    errors = channel_errors(predicted, target, weight)
    shares = errors.detach() / constant_errors(target, weight).clamp(min=1e-6)
    seen = {f"{w.name}_error": error for w, error in zip(windows, errors, strict=True)}
    seen |= {f"{w.name}_error_share": share for w, share in zip(windows, shares, strict=True)}
    return weighted_mean(errors, config.channel_weights), seen


def patch_mean(patches: Tensor) -> Tensor:
    """Mean [n q 1 1] over all values of each patch [n q c v]."""
    return patches.mean(dim=(2, 3), keepdim=True)


def patch_deviation(patches: Tensor) -> Tensor:
    """Standard deviation [n q 1 1] over all values of each patch [n q c v], never 0.

    Source:
        He et al. 2022, section 3; with their 1e-6 on the unbiased variance.
    """
    return (patches.var(dim=(2, 3), keepdim=True) + 1e-6).sqrt()


def require_channel_weights(config: MaeConfig, n_windows: int) -> None:
    """Raise UsageError where the weights of the windows cannot be used."""
    n_weights = len(config.channel_weights)
    if config.weight > 0 and n_weights != n_windows:
        raise UsageError(
            f"mae.channel_weights has {n_weights} numbers for {n_windows} windows",
            remedy="give one weight per window",
        )
    if config.weight > 0 and not math.fsum(config.channel_weights) > 0:
        raise UsageError("mae.channel_weights are all 0", remedy="weigh a window, or mae 0")


def tissue_weights(target: Tensor, saturated_weight: float) -> Tensor:
    """1 where a window is not saturated, else `saturated_weight`; the shape of `target`.

    In a brain window most voxels are saturated bone or air, and plain error is spent on the edges
    between them.
    """
    inside = (target.abs() < 1.0).to(target.dtype)
    return inside.mul_(1.0 - saturated_weight).add_(saturated_weight)


def channel_errors(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared error of each window.

    Args:
        predicted: [b q c v].
        target: [b q c v] in [-1, 1].
        weight: [b q c v] from `tissue_weights`.

    Returns:
        [c] float32.

    Reads as:
        for c: sum over b, q, v of weight (predicted - target)^2 / sum of weight
    """
    squared = (predicted.float() - target).square()
    return (weight * squared).sum(dim=(0, 1, 3)) / weight.sum(dim=(0, 1, 3))


@torch.no_grad()
def constant_errors(target: Tensor, weight: Tensor) -> Tensor:
    """Error [c] of the best prediction that is the same for every patch: their weighted mean patch.

    What a reconstruction has to beat to have learned anything about the scan in hand. Arguments
    as for `channel_errors`; the error about a weighted mean is sum w t^2 - (sum w t)^2 / sum w.
    """
    weighted = weight * target
    total = weight.sum(dim=(0, 1))  # [c v]
    spread = (weighted * target).sum(dim=(0, 1)) - weighted.sum(dim=(0, 1)).square() / total
    return spread.sum(dim=-1) / total.sum(dim=-1)


def weighted_mean(errors: Tensor, channel_weights: tuple[float, ...]) -> Tensor:
    """One number from the errors [c] of all windows."""
    weights = constant(channel_weights, errors.device)
    return (weights * errors).sum() / weights.sum()


def latent_loss(predicted: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Smooth-L1 to the mean of the teacher's layer-normalised features.

    Args:
        predicted: [b q d].
        features: each [b q d], one per block of the teacher.

    Source:
        Baevski et al. 2022 (data2vec), section 3.3, with layer normalisation.
    """
    with torch.no_grad():
        normed = [F.layer_norm(f.float(), f.shape[-1:]) for f in features]
        target = torch.stack(normed).mean(dim=0)
    return F.smooth_l1_loss(predicted.float(), target)


def draw_masked(masked: Tensor, n_asked: int) -> Tensor:
    """A random share of the masked tokens of each view.

    Args:
        masked: [n t] bool, the same number of True in every row.
        n_asked: how many of them; by torch's default generator.

    Returns:
        [n q] long, places in the row, ascending.
    """
    score = torch.rand(masked.shape, device=masked.device).masked_fill(~masked, -1.0)
    return torch.sort(score.topk(n_asked, dim=1).indices, dim=1).values
