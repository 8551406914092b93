"""The one loop, for pre-training and for fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headct.errors import TrainingError
from headct.train.optim import Schedule, set_schedule
from headct.train.runtime import Runtime


@dataclass
class TrainState:
    """All that changes while a run goes on; what a checkpoint holds.

    Attributes:
        module: trained parameters, and whatever is saved with them (teacher, heads, queues).
        optimizer: over the module's trainable parameters.
        step: optimizer steps done, applied or not: the position in every schedule and in the data.
        seen_scans: scans of all ranks so far.
        skipped_steps: steps that were not applied since their loss was not finite.
        skipped_in_a_row: of these, the latest without a good one between.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seen_scans: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class StepRecord:
    """What happened in one step, for the hooks.

    Attributes:
        step: number of steps done after this one.
        terms: mean over micro-batches and ranks of what the losses returned.
        scheduled: learning rate, weight decay and so on.
        gradient_norm: before clipping.
        applied: False where the loss or the gradient was not finite.
        n_scans: scans of all ranks.
        seconds: wall time.
        batches: this rank's micro-batches.
    """

    step: int
    terms: dict[str, float]
    scheduled: dict[str, float]
    gradient_norm: float
    applied: bool
    n_scans: int
    seconds: float
    batches: Sequence[Any] = field(repr=False)


Losses = Callable[[Any, int], dict[str, Tensor]]
"""One forward pass: (micro-batch, step) -> terms by name, with "loss" the sum to minimise."""
Hook = Callable[[TrainState, StepRecord], None]
"""Called after every step on every rank; decides by itself whether it has something to do."""


@dataclass(frozen=True)
class LoopConfig:
    """What the loop itself needs to know.

    Attributes:
        steps: of the whole run.
        seed: makes torch's random numbers of every step.
        clip_norm: largest global gradient norm.
        accumulate: micro-batches per step.
        max_skipped_in_a_row: the run stops after so many steps that could not be applied.
    """

    steps: int
    seed: int
    clip_norm: float
    accumulate: int = 1
    max_skipped_in_a_row: int = 5


def fit(
    state: TrainState,
    batches: Iterator[Any],
    losses: Losses,
    schedule: Schedule,
    config: LoopConfig,
    runtime: Runtime,
    *,
    after_step: Callable[[dict[str, float]], None] = lambda _: None,
    hooks: Sequence[Hook] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to `config.steps`.

    Args:
        state: changed in place.
        batches: micro-batches from `state.step` on; `len` of one counts its scans.
        losses: forward pass; wrap its module with `runtime.distribute` where ranks train together.
        schedule: of the global step.
        config: length, clipping, accumulation.
        runtime: device, precision, ranks.
        after_step: called with the scheduled values after an applied step (teacher update).
        hooks: metrics, checkpoints, panels.
        stop: asked after every step; True ends the loop early, with the state whole.

    Raises:
        TrainingError: too many steps in a row had a loss or gradient that is not finite.
    """
    while state.step < config.steps:
        started = time.perf_counter()
        now = schedule(state.step)
        set_schedule(state.optimizer, now)
        runtime.seed_step(config.seed, state.step)
        used = [next(batches) for _ in range(config.accumulate)]
        terms = _backward(state, used, losses, runtime)
        norm = _clip(state.optimizer, config.clip_norm)
        applied = _all_finite(terms["loss"], norm)
        if applied:
            state.optimizer.step()
            after_step(now)
        state.optimizer.zero_grad(set_to_none=True)
        n_scans = sum(len(batch) for batch in used) * runtime.world_size
        _count(state, n_scans, applied)
        seconds = time.perf_counter() - started
        record = StepRecord(state.step, terms, now, norm, applied, n_scans, seconds, used)
        for hook in hooks:
            hook(state, record)
        if state.skipped_in_a_row >= config.max_skipped_in_a_row:
            raise TrainingError(
                f"the loss was not finite {state.skipped_in_a_row} times in a row",
                remedy="lower optim.lr, or set precision=fp32; nonfinite.jsonl names the scans",
                code="nonfinite-loss",
            )
        if runtime.any(stop()):
            return


def _backward(
    state: TrainState, used: Sequence[Any], losses: Losses, runtime: Runtime
) -> dict[str, float]:
    """Gradients of the mean loss over micro-batches; returns the mean of every term."""
    sums: dict[str, Tensor] = {}
    for batch in used:
        with runtime.autocast():
            terms = losses(batch, state.step)
        (terms["loss"] / len(used)).backward()  # type: ignore[no-untyped-call]
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / len(used)
    means = runtime.mean(torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, means, strict=True))


def _clip(optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return float(nn.utils.clip_grad_norm_(parameters, clip_norm))


def _all_finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)


def _count(state: TrainState, n_scans: int, applied: bool) -> None:
    state.step += 1
    state.seen_scans += n_scans
    state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
    state.skipped_steps += not applied
