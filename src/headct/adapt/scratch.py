"""Networks that are no encoder: built by their name, trained from new weights, saved whole."""

from __future__ import annotations

from typing import Any

from torch import nn

from headct.adapt.cnn import Cnn3d, CnnConfig
from headct.adapt.resnets import Resnet3d, ResnetConfig, Slices2d
from headct.config import Config

Network = Cnn3d | Resnet3d | Slices2d
NETWORKS: dict[str, tuple[type[Config], type[Any]]] = {
    "cnn3d": (CnnConfig, Cnn3d),
    "resnet3d": (ResnetConfig, Resnet3d),
    "slices2d": (ResnetConfig, Slices2d),
}
"""By the name of a start: the config of the architecture, and the network."""


def build_network(kind: str, config: dict[str, Any], n_findings: int) -> nn.Module:
    """A network with new weights.

    Args:
        kind: a name of NETWORKS.
        config: of the architecture, as task.json and recipes keep it.
        n_findings: logits.

    Raises:
        UsageError: an optional library is absent.
    """
    model, network = NETWORKS[kind]
    built: nn.Module = network(model.model_validate(config), n_findings)
    return built
