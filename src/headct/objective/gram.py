"""Gram anchoring: in long runs of large encoders patches keep the likeness they had early on.

Self-distillation on CLS goes on improving when patch features have begun to blur into each other.
The anchor is a copy of an early teacher; the term pulls the cosines between the student's patches
to those between the anchor's, and leaves the features themselves free.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from headct.model.encoder import ViT3D
from headct.objective.mae import TermConfig


class GramConfig(TermConfig):
    """L_gram; for runs of more than 200,000 steps and encoders of 300 M weights and more."""

    weight: float = Field(default=0.0, ge=0.0)
    """1 to 2 where it is used."""
    ramp: tuple[float, float] = (0.6, 0.65)
    anchor_fraction: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the run after which the teacher is copied as the anchor."""

    @model_validator(mode="after")
    def _anchored_before_use(self) -> GramConfig:
        if self.ramp[0] < self.anchor_fraction:
            raise ValueError(
                f"ramp starts at {self.ramp[0]}, before there is an anchor ({self.anchor_fraction})"
            )
        return self


class GramAnchor(nn.Module):
    """The early teacher.

    Args:
        teacher: copied.
        config: when it stops following.
    """

    def __init__(self, teacher: ViT3D, config: GramConfig) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.config = config

    @torch.no_grad()
    def follow(self, teacher: ViT3D, step_fraction: float) -> None:
        """Be the teacher until a share of the run is done, and then stay."""
        if step_fraction < self.config.anchor_fraction:
            torch._foreach_lerp_(list(self.encoder.parameters()), list(teacher.parameters()), 1.0)

    def train(self, mode: bool = True) -> GramAnchor:
        """As in torch, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of patches of a view.

    Args:
        student: [n t d] patch features.
        anchor: [n t e] features of the same patches; no gradient.

    Reads as:
        mean over views n and patches i, j of (cos(s[n, i], s[n, j]) - cos(a[n, i], a[n, j]))^2

    Source:
        Simeoni et al. 2025 (DINOv3), section 4.2; a mean instead of the sum, so that it does not
        grow with the number of patches.
    """
    s, a = (F.normalize(x.float(), dim=-1) for x in (student, anchor.detach()))
    return F.mse_loss(s @ s.mT, a @ a.mT)
