"""Choosing the learning rate of a start on train patients alone, each rate with the whole budget.

So that a net from scratch is a fair rival: it is tuned on its own, as the pretrained one was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from headct.adapt.logistic import draw_folds, log_loss
from headct.adapt.scoring import network_scores, score_store
from headct.atomic import write_json
from headct.config import Config, Positive
from headct.model.device import choose_device
from headct.store.labels import Labels
from headct.store.store import Store

Train = Callable[[Labels, float, Path], nn.Module]
"""Labels to learn from, a peak rate and a folder for checkpoints -> the net."""


class SearchConfig(Config):
    """Which learning rates are tried before the training proper."""

    lr: tuple[Positive, ...] = ()
    """Peak rates to choose from; none: the rate of the recipe is taken as it is."""
    n_parts: int = Field(default=4, ge=2)
    """One part in so many of the train patients judges the rates, and is trained on afterwards."""


def search_rate(
    train: Train,
    store: Store,
    labels: Labels,
    config: SearchConfig,
    folder: Path,
    identity: dict[str, str],
    seed: int,
) -> dict[float, float]:
    """Mean log loss on held-out train patients by learning rate; the lowest is the best.

    Stopped, the same call goes on: rates that are done are not tried again.

    Args:
        train: trains a net for the whole budget.
        store: of the scans.
        labels: of the train scans.
        config: the rates, and how many patients judge.
        folder: for checkpoints and what is done; the caller removes it.
        identity: of the run; what another run left is thrown away.
        seed: of the draw of patients.
    """
    fold = draw_folds(labels.patient_id, labels.values, config.n_parts, seed)
    fitted, judges = (labels.take(np.flatnonzero(chosen)) for chosen in (fold != 0, fold == 0))
    losses = {}
    for lr in config.lr:
        done = folder / f"{lr:g}.json"
        about = identity | {"lr": f"{lr:g}"}
        known = _read(done)
        if known.get("about") != about:
            net = train(fitted, lr, folder / f"{lr:g}")
            score = network_scores(net, choose_device())
            scores = score_store(score, store, judges.row.tolist())
            loss = float(log_loss(scores[:, None], judges.values).mean())
            known = {"about": about, "loss": loss}
            write_json(done, known)
        losses[lr] = float(known["loss"])
    return losses


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
