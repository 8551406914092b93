"""Scans -> scores: the one path that fine-tuning, evaluation and `headct predict` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from headct.adapt.features import Vectors
from headct.adapt.floors import blocks, histogram
from headct.adapt.operating import calibrate
from headct.adapt.predictions import rounded
from headct.adapt.scratch import NETWORKS, build_network
from headct.adapt.task import BUNDLE, HEAD, Task
from headct.errors import CheckpointError, MismatchError, UsageError
from headct.model.bundle import load_bundle, load_strictly
from headct.model.device import choose_device
from headct.model.embed import Bundle, pooled, require_finite_vectors
from headct.model.encoder import ViT3D
from headct.progress import tracking
from headct.store.ahead import read_batches
from headct.store.store import Store

Hu = NDArray[np.int16]
Score = Callable[[Hu], NDArray[np.float64]]
"""Canonical HU [b z y x] -> scores [b f] in [0, 1]."""


def scorer(task: Task, bundle: Bundle | None = None, device: torch.device | None = None) -> Score:
    """A function from canonical volumes to the scores of a task, as they are served.

    Args:
        task: from `load_task`.
        bundle: the encoder that the task starts from; not needed where the task has its own.
        device: of what the task has of its own; a GPU where there is one if None.

    Raises:
        MismatchError: another bundle than the task was fitted on.
        UsageError: features from elsewhere.
    """
    score = exact_scorer(task, bundle, device)
    return lambda hu: rounded(score(hu))


def exact_scorer(
    task: Task, bundle: Bundle | None = None, device: torch.device | None = None
) -> Score:
    """`scorer` before its rounding, for those who calibrate the scores first."""
    info = task.info
    if bundle is not None and info.bundle_hash and bundle.hash != info.bundle_hash:
        raise MismatchError(
            f"the task was made with bundle {info.bundle_hash}, not {bundle.hash}",
            remedy="give the bundle that the task names in task.json",
        )
    device = device or choose_device()
    if info.kind.removeprefix("scratch-") in NETWORKS:
        return _network_scorer(task, device)
    if (task.folder / BUNDLE).is_dir():
        bundle = load_bundle(task.folder / BUNDLE, device=device)
    if info.kind == "attentive":
        return _attentive_scorer(task, bundle)
    featurise = featuriser(info.source, info.preprocessing.spacing_mm_zyx, bundle, info.init_seed)
    return lambda hu: task.score_vectors(featurise(hu))


def score_store(score: Score, store: Store, rows: Sequence[int]) -> NDArray[np.float64]:
    """Scores [n f] of some rows of a store."""
    parts = []
    with tracking("score", len(rows)) as tracker:
        for some, hu in read_batches(store, rows):
            parts.append(score(hu))
            tracker.advance(len(some))
    return np.concatenate(parts)


def featuriser(
    source: str,
    spacing_mm_zyx: tuple[float, float, float],
    bundle: Bundle | None,
    init_seed: int = 0,
) -> Callable[[Hu], Vectors]:
    """The function that makes the vectors of a feature source.

    Args:
        source: encoder, random-init, histogram or blocks.
        spacing_mm_zyx: of the canonical grid.
        bundle: the encoder; of random-init, its architecture.
        init_seed: of the weights of random-init.

    Raises:
        UsageError: a source that cannot be computed, or no bundle where one is needed.
    """
    if source == "histogram":
        return histogram
    if source == "blocks":
        return lambda hu: blocks(hu, spacing_mm_zyx)
    if source not in ("encoder", "random-init"):
        raise UsageError(
            f"the scores of {source} features are not made from scans here",
            remedy="`headct embed` and `headct probe` score whole stores of scans",
        )
    if bundle is None:
        raise UsageError("the task needs its encoder", remedy="give its bundle (--bundle)")
    encoder = bundle if source == "encoder" else with_random_weights(bundle, init_seed)
    return lambda hu: encoder_vectors(encoder, hu)


def encoder_vectors(bundle: Bundle, hu: Hu) -> Vectors:
    """`cls`, `mean`, `max` and `region` of canonical volumes.

    `region` is rounded to half precision, as feature tables keep it, so that a scan has the same
    score from a table and from its volume.
    """
    embedding = pooled(bundle.encode_hu(hu))
    require_finite_vectors(embedding.cls)
    return {
        "cls": embedding.cls,
        "mean": embedding.mean,
        "max": embedding.max,
        "region": embedding.region.reshape(len(hu), -1).astype(np.float16).astype(np.float32),
    }


def with_random_weights(bundle: Bundle, seed: int) -> Bundle:
    """The same architecture before any training: what the architecture alone is worth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ViT3D(bundle.encoder.config)
    return replace(bundle, encoder=encoder.to(bundle.device).eval().requires_grad_(False))


def _attentive_scorer(task: Task, bundle: Bundle | None) -> Score:
    if bundle is None:
        raise UsageError("the task needs its encoder", remedy="give its bundle (--bundle)")
    from headct.adapt.attentive import load_attentive, score_tokens

    info, head, encode = task.info, load_attentive(task), bundle.encode_hu
    return lambda hu: calibrate(score_tokens(head, encode(hu)), info.findings, info.temperatures)


def _network_scorer(task: Task, device: torch.device) -> Score:
    kind = task.info.kind.removeprefix("scratch-")
    net = build_network(kind, task.info.network, len(task.info.findings))
    try:
        load_strictly(net, load_file(task.folder / HEAD), "the task")
    except (SafetensorError, OSError) as error:
        raise CheckpointError("the task is damaged", remedy="make it again") from error
    info, score = task.info, network_scores(net, device)
    return lambda hu: calibrate(score(hu), info.findings, info.temperatures)


def network_scores(net: nn.Module, device: torch.device) -> Score:
    """Scores by a network, a scan at a time so that they do not depend on the company."""
    net = net.to(device).eval()

    def score(hu: Hu) -> NDArray[np.float64]:
        with torch.inference_mode():
            logits = [net(torch.from_numpy(one[None]).to(device).float())[0] for one in hu]
        return np.asarray(torch.stack(logits).double().sigmoid().cpu().numpy())

    return score
