"""Masked prediction: voxels (L_pix) and features (L_lat) of patches the student never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from headct.config import Config
from headct.errors import UsageError
from headct.model.tokens import to_channels, window_tensors
from headct.views.constants import constant
from headct.volume.window import Window

CHUNK_VALUES = 2**17
"""Values of window channels that a CPU works on at a time; five tensors of them fit its cache."""


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

    def n_asked(self, n_masked: int) -> int:
        """How many of so many masked patches are predicted, at least one."""
        return max(1, round(self.predicted_fraction * n_masked))


class LatConfig(TermConfig):
    """L_lat: the teacher's features of masked patches."""

    weight: float = Field(default=0.5, ge=0.0)
    ramp: tuple[float, float] = (0.1, 0.3)
    last_blocks: int | None = Field(default=None, gt=0)
    """Blocks whose outputs are averaged as the target; None: 3 at depth >= 12, else 1."""


Pull = Callable[[Tensor, Tensor, Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


def pixel_loss(
    predicted: Tensor,
    voxels_hu: Tensor,
    windows: Sequence[Window],
    config: MaeConfig,
    pull: Pull | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_pix, and per window its error and the share of the best constant patch's.

    Args:
        predicted: [n q c*v] of the decoder.
        voxels_hu: [n q v] what is there.
        windows: c of them.
        config: weights of voxels and windows.
        pull: `pull_of_patches`, or the same compiled.
    """
    of_patch = torch.unflatten(predicted.flatten(0, 1), -1, (len(windows), -1))  # [m c v]
    errors, shares = WindowErrors.apply(  # type: ignore[no-untyped-call]
        of_patch, voxels_hu.flatten(0, 1), windows, config, pull or pull_of_patches
    )
    seen = {f"{w.name}_error": error for w, error in zip(windows, errors, strict=True)}
    seen |= {f"{w.name}_error_share": share for w, share in zip(windows, shares, strict=True)}
    return weighted_mean(errors, config.channel_weights), seen


def patch_mean(patches: Tensor) -> Tensor:
    """Mean [... 1 1] over all values of each patch [... c v]."""
    return patches.mean(dim=(-2, -1), keepdim=True)


def patch_deviation(patches: Tensor) -> Tensor:
    """Standard deviation [... 1 1] over all values of each patch [... c v], never 0.

    Source:
        He et al. 2022, section 3; with their 1e-6 on the unbiased variance.
    """
    return (patches.var(dim=(-2, -1), keepdim=True) + 1e-6).sqrt()


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
    # trunc: 0 inside, 1 or -1 where saturated; on a CPU it is 4x faster than a comparison
    return target.trunc().abs_().mul_(saturated_weight - 1.0).add_(1.0)


def pull_of_patches(
    predicted: Tensor,
    voxels_hu: Tensor,
    level_hu: Tensor,
    width_hu: Tensor,
    saturated_weight: float,
    normalised: bool,
) -> tuple[Tensor, Tensor]:
    """What each voxel pulls at its prediction, and the sums that errors of windows are made of.

    Args:
        predicted: [m c v].
        voxels_hu: [m v].
        level_hu: [c] of the windows.
        width_hu: [c].
        saturated_weight: as in `MaeConfig`.
        normalised: as in `MaeConfig`.

    Returns:
        w (p - t) as [m c v] in the dtype of `predicted`, with w the weight of a voxel, p what is
        predicted and t the target; and [4 c v] sums over patches of w (p - t)^2, w, w t, w t^2.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    target = to_channels(voxels_hu[None].to(dtype), level_hu, width_hu)[0]
    weight = tissue_weights(target, saturated_weight)
    if normalised:
        target = (target - patch_mean(target)) / patch_deviation(target)
    missed = predicted.to(dtype) - target
    pull = weight * missed
    sums = [missed.mul_(pull).sum(dim=0), weight.sum(dim=0)]
    sums += [weight.mul_(target).sum(dim=0), weight.mul_(target).sum(dim=0)]
    return pull.to(predicted.dtype), torch.stack(sums)


class WindowErrors(torch.autograd.Function):
    """Weighted mean squared error of each window, beside the best constant patch's.

    One pass over the voxels, on a CPU a few patches at a time, so that what lies between them and
    the error never leaves its cache; backward multiplies what that pass has kept.

    Reads as:
        for c: sum over m, v of weight (predicted - target)^2 / sum of weight
    """

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        voxels_hu: Tensor,
        windows: Sequence[Window],
        config: MaeConfig,
        pull: Pull = pull_of_patches,
    ) -> tuple[Tensor, Tensor]:
        """Errors [c], and their shares of `constant_errors`, without a gradient.

        Args:
            ctx: of autograd.
            predicted: [m c v].
            voxels_hu: [m v].
            windows: c of them.
            config: weight of saturated voxels, and whether patches are normalised.
            pull: `pull_of_patches`, or the same compiled.
        """
        windows_hu = window_tensors(windows, predicted.device)
        how = (*windows_hu, config.saturated_weight, config.normalised)
        pieces = chunks(predicted)
        pulls, sums = pull(predicted[pieces[0]], voxels_hu[pieces[0]], *how)
        if len(pieces) > 1:
            first, pulls = pulls, torch.empty_like(predicted)
            pulls[pieces[0]] = first
        for at in pieces[1:]:
            pulls[at], more = pull(predicted[at], voxels_hu[at], *how)
            sums = sums + more
        squares, total = sums[:2].sum(dim=-1)  # each [c]
        shares = squares / total / constant_errors(*sums[1:]).clamp(min=1e-6)
        ctx.save_for_backward(pulls, total)
        ctx.mark_non_differentiable(shares)
        return squares / total, shares

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        """2 weight (predicted - target) / sum of weight, times the gradient [c] of each error."""
        pulls, total = ctx.saved_tensors
        of_predicted = torch.empty_like(pulls)
        for channel, scale in enumerate(2.0 * grad / total):
            torch.mul(pulls[:, channel], scale, out=of_predicted[:, channel])
        return of_predicted, None, None, None, None


def chunks(patches: Tensor) -> list[slice]:
    """Patches [m c v] that are looked at together: all, but on a CPU what its cache holds."""
    n = len(patches)
    if patches.device.type == "cpu":
        n = max(1, CHUNK_VALUES // patches[0].numel())
    return [slice(start, start + n) for start in range(0, len(patches), n)]


def constant_errors(total: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Error [c] of the best prediction that is the same for every patch: their weighted mean patch.

    What a reconstruction has to beat to have learned anything about the scan in hand. The error
    about a weighted mean is sum w t^2 - (sum w t)^2 / sum w.

    Args:
        total: [c v] sum of the weights w over all patches.
        first: [c v] sum of w t.
        second: [c v] sum of w t^2.
    """
    spread = second - first.square() / total
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
