"""Fine-tuning: labelled scans and a start -> TASK, with everything learnt on train scans alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from headct.adapt.batches import LabelledScans, sides_alone
from headct.adapt.cnn import CnnConfig
from headct.adapt.lora import LoraConfig, add_lora, fold_lora
from headct.adapt.network import VECTORS, EncoderNet
from headct.adapt.operating import OperatingConfig, calibrate, settle
from headct.adapt.predictions import to_predictions, write_predictions
from headct.adapt.probe import ProbeConfig, draw_train, require_trainable
from headct.adapt.resnets import ResnetConfig
from headct.adapt.scoring import exact_scorer, score_store
from headct.adapt.scratch import NETWORKS
from headct.adapt.search import SearchConfig, search_rate
from headct.adapt.start import Start
from headct.adapt.supervise import METRICS, SuperviseConfig, positive_weights, supervise
from headct.adapt.task import (
    BUNDLE,
    HEAD,
    PREDICTIONS,
    TaskInfo,
    count_labels,
    load_task,
    replacing_folder,
    save_head,
    save_info,
    sites_of,
)
from headct.errors import UsageError
from headct.model.bundle import save_bundle
from headct.run import write_run_record
from headct.store.labels import Labels
from headct.store.store import Store
from headct.train.runtime import start_runtime

KINDS = {"bundle": "finetune", "vit": "scratch-vit"} | {n: f"scratch-{n}" for n in NETWORKS}


class FinetuneConfig(SuperviseConfig):
    """A recipe of `headct finetune`."""

    token_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a scan's tokens that a ViT computes in a training step, drawn anew each time."""
    probe: ProbeConfig = ProbeConfig()
    """How the head is fitted on frozen features before a bundle is fine-tuned."""
    cnn: CnnConfig = CnnConfig()
    """Architecture of the small convolutional network."""
    resnet: ResnetConfig = ResnetConfig()
    """Architecture of resnet3d and slices2d."""
    search: SearchConfig = SearchConfig()
    """Learning rates to choose from on held-out train patients before the training proper."""
    lora: LoraConfig = LoraConfig()
    """Low-rank changes to a bundle's encoder instead of training all of it."""

    def at_rate(self, lr: float) -> FinetuneConfig:
        """The same with another peak learning rate."""
        return self.model_copy(update={"optim": self.optim.model_copy(update={"lr": lr})})

    def network(self, kind: str) -> dict[str, Any]:
        """Architecture of a network of NETWORKS; empty for encoders."""
        if kind not in NETWORKS:
            return {}
        return (self.cnn if kind == "cnn3d" else self.resnet).model_dump(mode="json")


def run_finetune(
    store: Store,
    labels: Labels,
    start: Start,
    out: Path,
    config: FinetuneConfig,
    *,
    n_labels: int | None = None,
    seed: int = 0,
    name: str = "",
) -> TaskInfo:
    """Train on the train scans for a fixed budget; thresholds from tune; score tune and test once.

    Nothing is selected by looking at a score: the weights kept are the moving average at the end.
    Stopped runs go on from the last checkpoint in a folder beside `out`.

    Args:
        store: canonical volumes.
        labels: of scans of that store.
        start: a bundle, or new weights.
        out: the task folder; a task that is there is replaced at the end.
        config: the recipe.
        n_labels: use only this many train scans; the same ones as `run_probe` with this seed.
        seed: of that draw, of new weights, of order and augmentation.
        name: in tables and plots; by default that of the method.

    Raises:
        LabelError: a finding has too few scans with or without it to be learnt.
        MismatchError: the bundle wants another preprocessing than the store has.
        UsageError: LoRA without a bundle, or without peft.
    """
    if start.bundle is not None:
        start.bundle.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
    fitted = labels.take(draw_train(labels, n_labels, seed))
    require_trainable(fitted)
    if config.augment.pose.flip_probability and (alone := sides_alone(labels.findings)):
        print(
            f"no flips: {', '.join(alone)} names a side, and the other side is not among the"
            " findings",
            file=sys.stderr,
        )
    work, search = (out.with_name(f".{out.name}.{what}") for what in ("work", "search"))
    if config.lora.rank and start.kind != "bundle":
        raise UsageError("LoRA changes a trained encoder", remedy="give --bundle")
    losses: dict[float, float] = {}
    if config.search.lr:
        identity = _identity(store, fitted, start, config, seed)

        def train(some: Labels, lr: float, folder: Path) -> nn.Module:
            return _train(store, some, start, config.at_rate(lr), folder, seed)

        losses = search_rate(train, store, fitted, config.search, search, identity, seed)
        config = config.at_rate(min(losses, key=lambda lr: losses[lr]))
    net = _train(store, fitted, start, config, work, seed)
    info = _info(labels, fitted, start, config, store, seed, name)
    info = info.model_copy(update={"searched": {f"{lr:g}": loss for lr, loss in losses.items()}})
    with replacing_folder(out) as folder:
        _save_net(folder, net, info)
        save_info(folder, info)
        info = _score(folder, labels, store, config.probe)
        shutil.copy(work / METRICS, folder / METRICS)
        write_run_record(folder, config, seed=seed, verb="finetune")
        save_info(folder, info)
    for folder in (work, search):
        shutil.rmtree(folder, ignore_errors=True)
    return info


def _train(
    store: Store, fitted: Labels, start: Start, config: FinetuneConfig, work: Path, seed: int
) -> nn.Module:
    """A net trained on labelled scans, going on from what is in `work`."""
    with start_runtime(config.precision, config.threads) as runtime:
        net = start.build(
            store, fitted, config.probe, config.network(start.kind), config.token_fraction, seed
        )
        if config.lora.rank:
            assert isinstance(net, EncoderNet)
            add_lora(net.encoder, config.lora, seed)
        lr_scale = start.lr_scale(net, config.layer_decay, config.head_lr_factor)
        scans = LabelledScans(store, fitted, config.batch, seed, config.augment, runtime.device)
        identity = _identity(store, fitted, start, config, seed)
        weight = positive_weights(fitted.values, config.positive_weight_power)
        shift_bias(net, weight.log())
        net = supervise(net, scans, config, runtime, work, identity, lr_scale).cpu()
    shift_bias(net, -weight.log())
    if config.lora.rank:
        fold_lora(net)
    return net


@torch.no_grad()
def shift_bias(net: nn.Module, by: Tensor) -> None:
    """Add to the biases [f] of a net's head.

    A weight w on the positives raises the best logit by log w wherever a scan lies: the head starts
    that much higher and is taken back at the end, so that its scores are probabilities.
    """
    net.get_parameter("head.bias").add_(by)


def _identity(
    store: Store, fitted: Labels, start: Start, config: FinetuneConfig, seed: int
) -> dict[str, str]:
    seen = [fitted.scan_id.tolist(), fitted.findings, fitted.values.tolist()]
    return {
        "recipe": _digest([config.model_dump(mode="json"), seed]),
        "labels": _digest(seen),
        "start": f"{start.kind} {start.bundle.hash if start.bundle else ''}",
        "preprocessing": store.preprocessing.hash,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _info(
    labels: Labels,
    fitted: Labels,
    start: Start,
    config: FinetuneConfig,
    store: Store,
    seed: int,
    name: str,
) -> TaskInfo:
    kind = "lora" if config.lora.rank else KINDS[start.kind]
    n_train, n_positive = count_labels(fitted)
    return TaskInfo.model_validate(
        {
            "kind": kind,
            "method": name or kind,
            "findings": labels.findings,
            "thresholds": dict.fromkeys(labels.findings),
            **config.probe.model_dump(include=set(OperatingConfig.model_fields)),
            "source": "none" if start.kind in NETWORKS else "encoder",
            "vectors": () if start.kind in NETWORKS else VECTORS,
            "bundle_hash": start.bundle_hash,
            "preprocessing": store.preprocessing.model_dump(exclude={"hash"}),
            "n_scans": len(fitted),
            "train_sites": sites_of(fitted),
            "n_train": n_train,
            "n_positive": n_positive,
            "seed": seed,
            "network": config.network(start.kind),
        }
    )


def _save_net(folder: Path, net: nn.Module, info: TaskInfo) -> None:
    if not isinstance(net, EncoderNet):
        weights = {name: w.detach().contiguous() for name, w in net.state_dict().items()}
        save_file(weights, folder / HEAD)
        return
    save_head(folder, *net.head.export())
    provenance = {"trained by": f"headct finetune ({info.method})", "starts from": info.bundle_hash}
    save_bundle(folder / BUNDLE, net.encoder, info.preprocessing, provenance)


def _score(folder: Path, labels: Labels, store: Store, config: OperatingConfig) -> TaskInfo:
    """Write predictions.parquet by the path that `headct predict` takes; thresholds from tune."""
    task = load_task(folder)
    shown = labels.take(np.flatnonzero(labels.split != "train"))
    raw = score_store(exact_scorer(task), store, shown.row.tolist())
    tune = shown.positions("tune")
    operating = settle(shown.take(tune), raw[tune], config)
    scores = calibrate(raw, shown.findings, operating.temperatures)
    predictions = to_predictions(
        shown,
        scores,
        method=task.info.method,
        seed=task.info.seed,
        n_train=list(task.info.n_train.values()),
        bundle_hash=task.info.bundle_hash,
        preprocessing_hash=task.info.preprocessing.hash,
    )
    write_predictions(folder / PREDICTIONS, predictions)
    return task.info.model_copy(update=asdict(operating))
