"""Where fine-tuning starts: a bundle with the probe's head, or new weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headct.adapt.features import FeatureTable, Vectors
from headct.adapt.logistic import Logistic
from headct.adapt.network import EncoderNet, ReadoutHead, blank_readout, layer_scale_of
from headct.adapt.probe import ProbeConfig, fit_head
from headct.adapt.readout import N_COMPONENTS, fit_readout
from headct.adapt.scoring import encoder_vectors
from headct.adapt.scratch import NETWORKS, build_network
from headct.errors import UsageError
from headct.model.architecture import ENCODERS, EncoderConfig
from headct.model.embed import Bundle
from headct.model.encoder import ViT3D
from headct.progress import tracking
from headct.store.ahead import read_batches
from headct.store.labels import Labels
from headct.store.store import Store
from headct.volume.preprocessing import PRESETS, Preprocessing

Kind = Literal["bundle", "vit", "cnn3d", "resnet3d", "slices2d"]


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        kind: a bundle, a new ViT, or a new convolutional network.
        bundle: the encoder; of a new ViT its architecture, where given.
    """

    kind: Kind
    bundle: Bundle | None = None

    @property
    def bundle_hash(self) -> str:
        """Of the encoder whose weights are used; empty where weights are new."""
        return self.bundle.hash if self.bundle and self.kind == "bundle" else ""

    def lr_scale(self, net: nn.Module, decay: float, head_factor: float) -> Callable[[str], float]:
        """Learning-rate factor by name of a parameter of the net."""
        depth = len(net.encoder.blocks) if isinstance(net, EncoderNet) else 0
        return layer_scale_of(depth, decay, head_factor)

    def build(
        self,
        store: Store,
        labels: Labels,
        probe: ProbeConfig,
        network: dict[str, Any],
        token_fraction: float,
        seed: int,
    ) -> nn.Module:
        """The net at step 0.

        Args:
            store: of the scans.
            labels: of the training scans alone.
            probe: how the head of a bundle is fitted on its frozen features first.
            network: architecture of a new convolutional network.
            token_fraction: share of tokens that a ViT computes in training.
            seed: of new weights and of the folds of the probe.
        """
        torch.manual_seed(seed)
        if self.kind in NETWORKS:
            net = build_network(self.kind, network, len(labels.findings))
            bias = net.get_parameter("head.bias")
            bias.data = torch.from_numpy(log_odds(labels.values)).float()
            return net
        if self.kind == "vit":
            encoder = ViT3D(self._architecture(store.preprocessing))
            head = blank_head(encoder.config.width, labels, seed)
        else:
            assert self.bundle is not None
            encoder = ViT3D(self.bundle.encoder.config)
            encoder.load_state_dict(self.bundle.encoder.state_dict())
            head = probe_head(self.bundle, store, labels, probe, seed)
        return EncoderNet(encoder, head, store.preprocessing.spacing_mm_zyx, token_fraction)

    def _architecture(self, preprocessing: Preprocessing) -> EncoderConfig:
        if self.bundle is not None:
            return self.bundle.encoder.config
        named = {preset.hash: name for name, preset in PRESETS.items()}
        name = named.get(preprocessing.hash)
        if name not in ENCODERS:
            raise UsageError(
                "the store's grid is no preset, so no architecture follows from it",
                remedy="give --bundle too: its architecture is used, with new weights",
            )
        return ENCODERS[name]


def probe_head(
    bundle: Bundle, store: Store, labels: Labels, probe: ProbeConfig, seed: int
) -> ReadoutHead:
    """Readout and head that solve the frozen problem: the head first, exactly and at once."""
    table = FeatureTable(
        labels.scan_id,
        labels.patient_id,
        labels.study_id,
        _embed(bundle, store, labels.row),
        "encoder",
        bundle.hash,
        store.preprocessing.hash,
    )
    readout = fit_readout(table, np.arange(len(labels)), N_COMPONENTS)
    head, _ = fit_head(readout.apply(table.vectors), labels, probe, seed)
    return ReadoutHead(readout, head)


def _embed(bundle: Bundle, store: Store, rows: NDArray[np.int64]) -> Vectors:
    parts = []
    with tracking("embed", len(rows)) as tracker:
        for some, hu in read_batches(store, rows.tolist()):
            parts.append(encoder_vectors(bundle, hu))
            tracker.advance(len(some))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def blank_head(width: int, labels: Labels, seed: int) -> ReadoutHead:
    """A head of zeros whose biases give the share of positives."""
    readout = blank_readout(width, seed)
    weight = np.zeros((len(labels.findings), len(readout.arrays["mean"])))
    return ReadoutHead(readout, Logistic(weight, log_odds(labels.values)))


def log_odds(values: NDArray[np.int8]) -> NDArray[np.float64]:
    """Log odds of a finding among its known labels [n f], half a scan added to each side."""
    present, absent = (values == 1).sum(0), (values == 0).sum(0)
    return np.asarray(np.log((present + 0.5) / (absent + 0.5)))
