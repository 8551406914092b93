"""The one loop, for pre-training and for fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
        skipped_steps: steps that were not applied since their loss or gradient was not finite.
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
        waited_s: of it, before the micro-batches were there; on a GPU, before they were launched.
        batches: this rank's micro-batches.
    """

    step: int
    terms: dict[str, float]
    scheduled: dict[str, float]
    gradient_norm: float
    applied: bool
    n_scans: int
    seconds: float
    waited_s: float
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
    after_skip: Callable[[], None] = lambda: None,
    share_gradients: Callable[[bool], None] = lambda _: None,
    hooks: Sequence[Hook] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train from `state.step` to `config.steps`.

    Args:
        state: changed in place.
        batches: micro-batches from `state.step` on; `len` of one counts its scans.
        losses: forward pass, through what `train.distribute` gives where ranks train together.
        schedule: of the global step.
        config: length, clipping, accumulation.
        runtime: device, precision, ranks.
        after_step: called with the scheduled values after an applied step (teacher update).
        after_skip: called after a step that was not applied.
        share_gradients: told before each micro-batch whether ranks average gradients after it.
        hooks: metrics, checkpoints, panels.
        stop: asked in every step; where any rank says True, all leave after that step.

    Raises:
        TrainingError: too many steps in a row had a loss or gradient that is not finite.
    """
    while state.step < config.steps:
        started = time.perf_counter()
        now = schedule(state.step)
        set_schedule(state.optimizer, now)
        runtime.seed_step(config.seed, state.step)
        used = [next(batches) for _ in range(config.accumulate)]
        waited = time.perf_counter() - started
        sums = _backward(state, used, losses, share_gradients, runtime)
        clipped_from = _clip(state.optimizer, config.clip_norm)
        terms, norm, stopping = _look(sums, clipped_from, stop(), runtime)
        applied = _all_finite(terms["loss"], norm)
        if applied:
            state.optimizer.step()
            after_step(now)
        else:
            after_skip()
        state.optimizer.zero_grad(set_to_none=True)
        n_scans = sum(len(batch) for batch in used) * runtime.world_size
        _count(state, n_scans, applied)
        seconds = time.perf_counter() - started
        record = StepRecord(state.step, terms, now, norm, applied, n_scans, seconds, waited, used)
        for hook in hooks:
            hook(state, record)
        if state.skipped_in_a_row >= config.max_skipped_in_a_row:
            raise TrainingError(
                f"loss or gradient was not finite {state.skipped_in_a_row} times in a row",
                remedy="lower optim.lr and optim.muon_lr, or set precision=fp32, and start in a new"
                " --out; nonfinite.jsonl names the scans",
                code="nonfinite-loss",
            )
        if stopping:
            return


def _backward(
    state: TrainState,
    used: Sequence[Any],
    losses: Losses,
    share_gradients: Callable[[bool], None],
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Gradients of the mean loss over micro-batches; returns the mean of every term."""
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(used, 1):
        share_gradients(number == len(used))
        with runtime.autocast():
            terms = losses(batch, state.step)
        (terms["loss"] / len(used)).backward()  # type: ignore[no-untyped-call]
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / len(used)
    return sums


def _clip(optimizer: torch.optim.Optimizer, clip_norm: float) -> Tensor:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _look(
    sums: dict[str, Tensor], norm: Tensor, stop: bool, runtime: Runtime
) -> tuple[dict[str, float], float, bool]:
    """Terms as means over ranks, gradient norm, and whether any rank wants to stop.

    The only place where a step waits for the device.
    """
    values = [*sums.values(), torch.tensor(float(stop))]
    means = runtime.mean(torch.stack([v.to(norm.device, non_blocking=True) for v in values]))
    *terms, stopping, size = torch.cat([means, norm.float()[None]]).tolist()
    return dict(zip(sums, terms, strict=True)), size, stopping > 0


def _all_finite(*values: float) -> bool:
    return all(abs(value) < float("inf") for value in values)


def _count(state: TrainState, n_scans: int, applied: bool) -> None:
    state.step += 1
    state.seen_scans += n_scans
    state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
    state.skipped_steps += not applied
