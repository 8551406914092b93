"""Supervised training of a net for findings: the loss, the averaged weights, the resumable loop."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from headct.adapt.batches import LIGHT, LabelledBatch, LabelledScans
from headct.config import Config, Count, NotNegative, ranges_rise
from headct.errors import MismatchError
from headct.progress import tracking
from headct.train.checkpoint import Identity, latest_checkpoint, restore
from headct.train.events import UnreadableScans
from headct.train.hooks import MetricsWriter, show_progress, trim_steps
from headct.train.loop import Hook, LoopConfig, StepRecord, TrainState, fit
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.recipe import RecordConfig
from headct.train.runtime import Precision, Runtime, StopRequest
from headct.train.saving import Checkpointer
from headct.views.batch import ViewsConfig

LINES_OF_METRICS = 60
METRICS = "metrics.jsonl"


class SuperviseOptim(OptimConfig):
    """AdamW with the defaults of short supervised runs."""

    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate of the last block."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises from 0."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.05, 0.05)
    """At the first and at the last step."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class SuperviseConfig(Config):
    """How a net is trained on labelled scans."""

    steps: int = Field(default=1200, gt=0)
    """Optimizer steps."""
    batch: int = Field(default=8, gt=0)
    """Scans per step."""
    optim: SuperviseOptim = SuperviseOptim()
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor on the learning rate per block from the top down."""
    head_lr_factor: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of the head; below 1 where it starts as a probe."""
    label_smoothing: float = Field(default=0.02, ge=0, lt=0.5)
    """Present counts as 1 less half of this, absent as half of this."""
    positive_weight_power: float = Field(default=0.5, ge=0, le=1)
    """Weight of a positive is (absent / present) to this power, at most 10."""
    average_decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the moving average of the weights, which is what is kept."""
    augment: Annotated[ViewsConfig, AfterValidator(ranges_rise)] = LIGHT
    """How scans are changed before every step."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware multiplies it."""
    threads: Count | None = None
    """CPU threads; none leaves torch's choice."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between checkpoints."""


class Averaged(nn.Module):
    """A net and the moving average of its weights; both are in a checkpoint."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.live = net
        self.average = copy.deepcopy(net).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, decay: float, step: int) -> None:
        """Move the average; early on it forgets faster, so that the start does not linger."""
        rate = 1 - min(decay, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.parameters(), self.live.parameters(), strict=True):
            slow.lerp_(fast, rate)


def known_label_loss(logits: Tensor, labels: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy over known labels, divided by their number.

    Args:
        logits: [b f].
        labels: [b f]; 1, 0 or -1, which counts for nothing.
        weight: [f], of positives.
        smoothing: share by which labels are drawn to a half.
    """
    known = labels >= 0
    target = labels.clamp(min=0).float() * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), target, pos_weight=weight, reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def positive_weights(values: NDArray[np.int8], power: float) -> Tensor:
    """Weight of positives per finding, from the labels [n f] of the training scans."""
    present, absent = (values == 1).sum(0), (values == 0).sum(0)
    return torch.from_numpy((absent / present.clip(1)).clip(max=10) ** power).float()


def supervise(
    net: nn.Module,
    scans: LabelledScans,
    config: SuperviseConfig,
    runtime: Runtime,
    work: Path,
    identity: Identity,
    lr_scale: Callable[[str], float],
) -> nn.Module:
    """Train a net, going on from a checkpoint in `work` where it belongs to the same run.

    Args:
        net: HU [b z y x] -> logits [b f].
        scans: training scans and labels.
        config: how.
        runtime: device and precision.
        work: folder of checkpoints and metrics; the caller removes it when all is done.
        identity: of the run; a checkpoint of another run is thrown away.
        lr_scale: factor on the learning rate by parameter name of the net.

    Returns:
        The net with averaged weights.

    Raises:
        KeyboardInterrupt: somebody asked to stop; a checkpoint was written.
    """
    module = Averaged(net).to(runtime.device)
    optimizer = make_optimizer(
        module, config.optim, lambda name: lr_scale(name.removeprefix("live."))
    )
    state = TrainState(module, optimizer)
    _go_on(state, work, identity)
    weight = positive_weights(scans.labels.values, config.positive_weight_power).to(runtime.device)

    def losses(batch: LabelledBatch, _: int) -> dict[str, Tensor]:
        logits = module.live(batch.hu)
        return {"loss": known_label_loss(logits, batch.labels, weight, config.label_smoothing)}

    checkpointer = Checkpointer(
        work / "checkpoints", identity, config.checkpoint_every, keep=1, runtime=runtime
    )
    loop = LoopConfig(config.steps, scans.seed, config.optim.clip_norm)
    module.live.train()
    record = RecordConfig(metrics_every=max(1, config.steps // LINES_OF_METRICS))
    with (
        StopRequest().listening() as stop,
        scans.batches(state.step, config.steps) as batches,
        tracking("train", config.steps * config.batch) as tracker,
        checkpointer,
    ):
        tracker.advance(state.seen_scans)
        hooks: list[Hook] = [
            _follow(module, config.average_decay),
            MetricsWriter(work / METRICS, record.writes),
            show_progress(tracker),
            UnreadableScans(scans.labels.scan_id.tolist(), scans.loader.max_unreadable),
            checkpointer,
        ]
        schedule = config.optim.schedule(config.steps)
        fit(state, batches, losses, schedule, loop, runtime, hooks=hooks, stop=stop)
    if state.step < config.steps:
        checkpointer.save(state)
        raise KeyboardInterrupt
    return module.average


def _go_on(state: TrainState, work: Path, identity: Identity) -> None:
    checkpoint = latest_checkpoint(work / "checkpoints")
    try:
        if checkpoint is not None:
            restore(state, checkpoint, identity)
    except MismatchError:
        shutil.rmtree(work)
    trim_steps(work / METRICS, state.step)


def _follow(module: Averaged, decay: float) -> Hook:
    def hook(_: TrainState, record: StepRecord) -> None:
        if record.applied:
            module.follow(decay, record.step)

    return hook
