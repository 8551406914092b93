"""Parameter groups, and schedules as pure functions of the global step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from headct.config import Config, NotNegative
from headct.train.muon import move_by_muon

Schedule = Callable[[int], dict[str, float]]
"""Global step -> "lr" and "weight_decay", and whatever else changes with the step ("momentum")."""

NEVER_DECAYED = ("cls", "registers", "gamma", "token", "positions.table")
"""Ends of the names of parameters without weight decay although they may be matrices."""
NEVER_MUON = ("prototypes",)
"""Ends of the names of matrices whose rows are vectors on their own, which Muon would mix."""

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW, Muon where asked for, and their schedules."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate at this recipe's batch."""
    muon_lr: float | None = Field(default=None, gt=0)
    """Peak rate of all weight matrices by Muon, AdamW keeps the rest; None: AdamW for all. Short
    runs learn several times faster with it (decision 0039)."""
    final_lr: float = Field(default=1e-6, ge=0)
    """Learning rate of AdamW at the last step; Muon's falls in proportion."""
    warmup_fraction: float = Field(default=0.08, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.2)
    """At the first and at the last step, cosine between."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """(0.9, 0.99) beyond 50,000 steps."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Teacher momentum at the first step, rising to 1; None: it spans 2 % of the run."""
    patch_embed_lr: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate of the patch embedding; 0.2 keeps runs with prototypes stable."""
    clip_norm: float = Field(default=3.0, gt=0)
    """Largest global gradient norm; 1.0 with the coding-rate objective."""

    def schedule(self, steps: int) -> Schedule:
        """Learning rate, weight decay and teacher momentum of a run of so many steps."""
        warmup = round(self.warmup_fraction * steps)

        def at(step: int) -> dict[str, float]:
            return {
                "lr": warmup_cosine(step, self.lr, self.final_lr, warmup, steps),
                "weight_decay": cosine(step, *self.weight_decay, steps),
                "momentum": teacher_momentum(step, steps, self.momentum),
            }

        return at


def cosine(step: int, start: float, end: float, steps: int) -> float:
    """From `start` at step 0 to `end` at the last step, along half a cosine."""
    progress = min(1.0, step / max(1, steps - 1))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: int, peak: float, final: float, warmup: int, steps: int) -> float:
    """Linear from peak / warmup to peak over the warm-up, then cosine to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(step - warmup, peak, final, steps - warmup)


def teacher_momentum(step: int, steps: int, first: float | None = None) -> float:
    """EMA coefficient, rising to 1 over all steps; where not given, at first it spans 2 % of them.

    Source:
        m0 = 1 - 1 / (0.02 x steps) within [0.95, 0.9995], cosine by global step.
    """
    if first is None:
        first = min(0.9995, max(0.95, 1 - 1 / (0.02 * steps)))
    return cosine(step, first, 1.0, steps)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups that say so, AdamW for the others; to everyone else one optimizer."""

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        with_muon, others = _split(groups)
        self.adamw = torch.optim.AdamW(
            others, lr=config.lr, betas=config.betas, eps=1e-8, fused=True
        )
        defaults = {"lr": config.lr, "weight_decay": 0.0}
        super().__init__([*with_muon, *self.adamw.param_groups], defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        with_muon, self.adamw.param_groups = _split(self.param_groups)
        self.adamw.state = self.state
        for group in with_muon:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                    move_by_muon(
                        parameter, state["momentum_buffer"], group["lr"], group["weight_decay"]
                    )
        self.adamw.step()


def _split(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    with_muon = [group for group in groups if group["muon"]]
    return with_muon, [group for group in groups if not group["muon"]]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    lr_scale: Callable[[str], float] = lambda _: 1.0,
    muon_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Groups by (learning-rate scale, decayed or not, Muon or AdamW).

    Weight decay leaves out biases, norms, LayerScale and tokens. Parameters that need no gradient
    (a teacher, a frozen trunk) are left out altogether.

    Args:
        named: parameters with their names.
        lr_scale: factor on the learning rate by parameter name (layer decay, a faster head).
        muon_scale: further factor on that of weight matrices, which go to Muon; None: none do.

    Returns:
        Groups with `names`, `lr_scale`, `decayed` and `muon` beside `params`, for `set_schedule`.
    """
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not name.endswith(NEVER_DECAYED)
        scale = lr_scale(name)
        muon = muon_scale is not None and decayed and parameter.ndim == 2
        muon = muon and not name.endswith(NEVER_MUON)
        if muon:
            scale *= muon_scale or 1.0
        empty = {"lr_scale": scale, "decayed": decayed, "muon": muon}
        group = groups.setdefault((scale, decayed, muon), {"params": [], "names": [], **empty})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def make_optimizer(
    module: nn.Module,
    config: OptimConfig,
    lr_scale: Callable[[str], float] = lambda _: 1.0,
) -> torch.optim.Optimizer:
    """Over a module's trainable parameters; the schedule sets rates and decay every step."""

    def scale(name: str) -> float:
        return lr_scale(name) * (config.patch_embed_lr if ".patch_embed." in name else 1.0)

    if config.muon_lr is not None:
        muon_scale = config.muon_lr / config.lr
        return MuonAdamW(parameter_groups(module.named_parameters(), scale, muon_scale), config)
    groups = parameter_groups(module.named_parameters(), scale)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, now: dict[str, float]) -> None:
    """Put this step's learning rate and weight decay into every group."""
    for group in optimizer.param_groups:
        group["lr"] = now["lr"] * group["lr_scale"]
        group["weight_decay"] = now["weight_decay"] if group["decayed"] else 0.0
