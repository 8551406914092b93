"""Attentive probe: one query per finding looks for it among the tokens of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headct.adapt.operating import OperatingConfig, calibrate, settle
from headct.adapt.predictions import to_predictions, write_predictions
from headct.adapt.probe import draw_train, require_trainable
from headct.adapt.start import log_odds
from headct.adapt.supervise import known_label_loss
from headct.adapt.task import (
    HEAD,
    PREDICTIONS,
    Task,
    TaskInfo,
    count_labels,
    replacing_folder,
    save_info,
    sites_of,
)
from headct.adapt.token_table import TokenTable
from headct.config import Config, Count, NotNegative
from headct.errors import CheckpointError, MismatchError
from headct.model.bundle import load_strictly
from headct.model.tokens import Tokens
from headct.progress import tracking
from headct.run import write_run_record
from headct.store.labels import Labels
from headct.train.hooks import show_progress
from headct.train.loop import LoopConfig, TrainState, fit
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.runtime import start_runtime
from headct.volume.preprocessing import Preprocessing

SCANS_AT_ONCE = 32
N_WAVES = 4
LONGEST_MM = 320.0
"""Wavelength of the slowest position feature: more than a head, so that no two places agree."""


class AttentiveOptim(OptimConfig):
    """AdamW for a small head on fixed tokens."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.1, 0.1)
    """At the first and at the last step."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class AttentiveConfig(OperatingConfig):
    """How the attentive probe is built and trained."""

    width: int = Field(default=64, gt=0)
    """Of keys and values."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the tokens that a training step leaves out, and of the values."""
    steps: int = Field(default=600, gt=0)
    """Optimizer steps."""
    batch: int = Field(default=32, gt=0)
    """Scans per step."""
    label_smoothing: float = Field(default=0.02, ge=0, lt=0.5)
    """As in fine-tuning."""
    optim: AttentiveOptim = AttentiveOptim()
    threads: Count | None = None
    """CPU threads; none leaves torch's choice."""


class HeadShape(Config):
    """What task.json must say for the head to be rebuilt."""

    n_features: int
    n_findings: int
    width: int
    dropout: float


class AttentiveHead(nn.Module):
    """Tokens [b t d] and their places [b t 3] in mm -> logits [b f].

    Source:
        Chen et al. 2023, Context Autoencoder, section 4.2 (attentive probing), with one query for
        each finding and the place of a token beside its content.
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        inputs = shape.n_features + 6 * N_WAVES
        self.norm = nn.LayerNorm(shape.n_features)
        self.key = nn.Linear(inputs, shape.width)
        self.value = nn.Linear(inputs, shape.width)
        self.queries = nn.Parameter(torch.randn(shape.n_findings, shape.width) * 0.02)
        self.weight = nn.Parameter(torch.zeros(shape.n_findings, shape.width))
        self.bias = nn.Parameter(torch.zeros(shape.n_findings))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, patches: Tensor, centre_mm: Tensor) -> Tensor:
        """Logits [b f]."""
        logits: Tensor = (self.looked_up(patches, centre_mm)[0] * self.weight).sum(-1) + self.bias
        return logits

    def looked_up(self, patches: Tensor, centre_mm: Tensor) -> tuple[Tensor, Tensor]:
        """What each query finds [b f w], and the weights of the tokens [b f t]."""
        x = torch.cat([self.norm(patches.float()), position_features(centre_mm.float())], -1)
        score = self.queries @ self.key(x).transpose(1, 2) * self.shape.width**-0.5  # [b f t]
        if self.training:
            left_out = torch.rand_like(score[:, :1]) < self.shape.dropout
            score = score.masked_fill(left_out, -1e4)
        weights = score.softmax(-1)
        return weights @ self.dropout(self.value(x)), weights


def position_features(centre_mm: Tensor) -> Tensor:
    """Sines and cosines of places [b t 3] in mm, wavelengths 320, 160, 80 and 40 mm: [b t 24]."""
    turns = 2.0 ** torch.arange(N_WAVES, device=centre_mm.device) / LONGEST_MM
    angle = (centre_mm[..., None] * turns * 2 * torch.pi).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def run_attentive(
    table: TokenTable,
    labels: Labels,
    preprocessing: Preprocessing,
    out: Path,
    config: AttentiveConfig,
    *,
    n_labels: int | None = None,
    seed: int = 0,
    name: str = "",
) -> TaskInfo:
    """Train on the train scans for a fixed budget, fix tune, score tune and test once; write TASK.

    Args:
        table: tokens of at least the labelled scans.
        labels: of the store that the tokens were made from.
        preprocessing: of that store.
        out: the task folder; a task that is there is replaced at the end.
        config: how.
        n_labels: use only this many train scans; the same ones as `run_probe` with this seed.
        seed: of the draw, of new weights and of the order.
        name: in tables and plots; by default that of the method.

    Raises:
        LabelError: a finding has too few scans with or without it to be learnt.
        MismatchError: tokens of other scans or of another preprocessing.
    """
    if table.preprocessing_hash != preprocessing.hash:
        raise MismatchError("the tokens have another preprocessing", remedy="embed this store")
    fitted = labels.take(draw_train(labels, n_labels, seed))
    require_trainable(fitted)
    head = _train(table, fitted, config, seed)
    shown = labels.take(np.flatnonzero(labels.split != "train"))
    raw = _scores(head, table, table.rows_of(shown.scan_id.tolist()))
    tune = shown.positions("tune")
    operating = settle(shown.take(tune), raw[tune], config)
    n_train, n_positive = count_labels(fitted)
    info = TaskInfo(
        kind="attentive",
        method=name or "attentive",
        findings=labels.findings,
        temperatures=operating.temperatures,
        thresholds=operating.thresholds,
        rule_out_thresholds=operating.rule_out_thresholds,
        threshold_specificity=config.threshold_specificity,
        rule_out_sensitivity=config.rule_out_sensitivity,
        source="encoder",
        bundle_hash=table.bundle_hash,
        preprocessing=preprocessing,
        n_scans=len(fitted),
        train_sites=sites_of(fitted),
        n_train=n_train,
        n_positive=n_positive,
        seed=seed,
        network=head.shape.model_dump(mode="json"),
    )
    predictions = to_predictions(
        shown,
        calibrate(raw, labels.findings, operating.temperatures),
        method=info.method,
        seed=seed,
        n_train=list(n_train.values()),
        bundle_hash=info.bundle_hash,
        preprocessing_hash=preprocessing.hash,
    )
    with replacing_folder(out) as folder:
        save_file({k: v.contiguous() for k, v in head.state_dict().items()}, folder / HEAD)
        write_predictions(folder / PREDICTIONS, predictions)
        write_run_record(folder, config, seed=seed, verb="probe")
        save_info(folder, info)
    return info


def _train(table: TokenTable, fitted: Labels, config: AttentiveConfig, seed: int) -> AttentiveHead:
    patches, centres = table.read(table.rows_of(fitted.scan_id.tolist()))
    truth = torch.from_numpy(fitted.values)
    shape = HeadShape(
        n_features=patches.shape[2],
        n_findings=len(fitted.findings),
        width=config.width,
        dropout=config.dropout,
    )
    torch.manual_seed(seed)
    head = AttentiveHead(shape)
    head.bias.data = torch.from_numpy(log_odds(fitted.values)).float()
    with start_runtime("fp32", config.threads) as runtime:
        head.to(runtime.device).train()
        no_weights = torch.ones(len(fitted.findings), device=runtime.device)

        def losses(rows: NDArray[np.int64], _: int) -> dict[str, Tensor]:
            inputs = (torch.from_numpy(a[rows]).to(runtime.device) for a in (patches, centres))
            known = truth[rows].to(runtime.device)
            logits = head(*inputs)
            return {"loss": known_label_loss(logits, known, no_weights, config.label_smoothing)}

        state = TrainState(head, make_optimizer(head, config.optim))
        loop = LoopConfig(config.steps, seed, config.optim.clip_norm)
        with tracking("train", config.steps * config.batch) as tracker:
            order = _batches(len(fitted), config.batch, seed)
            schedule, hooks = config.optim.schedule(config.steps), [show_progress(tracker)]
            fit(state, order, losses, schedule, loop, runtime, hooks=hooks)
    return head.cpu().eval()


def _batches(n: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step: whole permutations one after the other."""
    rng = np.random.default_rng([seed, n])
    left = np.empty(0, np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, rng.permutation(n)])
        yield left[:batch]
        left = left[batch:]


@torch.inference_mode()
def _scores(head: AttentiveHead, table: TokenTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    parts = [np.empty((0, head.shape.n_findings))]
    for start in range(0, len(rows), SCANS_AT_ONCE):
        patches, centres = table.read(rows[start : start + SCANS_AT_ONCE])
        logits = head(torch.from_numpy(patches), torch.from_numpy(centres))
        parts.append(logits.double().sigmoid().numpy())
    return np.concatenate(parts)


def load_attentive(task: Task) -> AttentiveHead:
    """The head of an attentive task.

    Raises:
        CheckpointError: the task is damaged.
    """
    head = AttentiveHead(HeadShape.model_validate(task.info.network)).eval()
    try:
        load_strictly(head, load_file(task.folder / HEAD), "the task")
    except (SafetensorError, OSError) as error:
        raise CheckpointError("the task is damaged", remedy="make it again") from error
    return head.requires_grad_(False)


@torch.inference_mode()
def score_tokens(head: AttentiveHead, tokens: Tokens) -> NDArray[np.float64]:
    """Scores [b f], not calibrated, of tokens as the table keeps them: in half precision."""
    patches = tokens.patches.float().cpu().half().float()
    return np.asarray(head(patches, tokens.centre_mm.float().cpu()).double().sigmoid().numpy())
