"""MONAI's residual networks as rivals: a whole-volume 3D one, and a 2D one slice by slice."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from headct.config import Config
from headct.errors import UsageError
from headct.model.tokens import to_channels, window_tensors
from headct.volume.window import WINDOWS, Window

Depth = Literal[10, 18, 34, 50]


class ResnetConfig(Config):
    """Architecture of a Resnet3d or Slices2d."""

    depth: Depth = 18
    """Layers, as in the ResNet papers."""
    windows: tuple[Window, ...] = Field(default=WINDOWS, min_length=1)
    """HU windows, one input channel each."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Before the last layer."""


class Resnet3d(nn.Module):
    """A 3D ResNet of MONAI over windowed voxels.

    Source:
        Hara et al. 2018, Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?
    """

    def __init__(self, config: ResnetConfig, n_findings: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = _resnet(config, 3)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(_width(config), n_findings)

    def forward(self, hu: Tensor) -> Tensor:
        """HU [b z y x] -> logits [b f]."""
        features = self.trunk(windowed(hu, self.config.windows))
        logits: Tensor = self.head(self.dropout(features.float()))
        return logits


class Slices2d(nn.Module):
    """A 2D ResNet of MONAI on every axial slice, and attention that weighs the slices.

    Source:
        Ilse et al. 2018, Attention-based Deep Multiple Instance Learning, equation 8.
    """

    def __init__(self, config: ResnetConfig, n_findings: int) -> None:
        super().__init__()
        self.config = config
        width = _width(config)
        self.trunk = _resnet(config, 2)
        self.attention = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 1))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, n_findings)

    def forward(self, hu: Tensor) -> Tensor:
        """HU [b z y x] -> logits [b f]."""
        channels = windowed(hu, self.config.windows)  # [b c z y x]
        slices = channels.transpose(1, 2).flatten(0, 1)  # [b*z c y x]
        features = self.trunk(slices).float().unflatten(0, (len(hu), -1))  # [b z w]
        weights = self.attention(features).softmax(1)
        logits: Tensor = self.head(self.dropout((weights * features).sum(1)))
        return logits


def windowed(hu: Tensor, windows: tuple[Window, ...]) -> Tensor:
    """HU [b z y x] -> channels in [-1, 1], [b c z y x]."""
    level_hu, width_hu = window_tensors(windows, hu.device)
    flat = to_channels(hu.float().flatten(1)[:, None], level_hu, width_hu)  # [b 1 c v]
    return flat[:, 0].reshape(len(hu), -1, *hu.shape[1:])


def _width(config: ResnetConfig) -> int:
    return 2048 if config.depth == 50 else 512


def _resnet(config: ResnetConfig, dimensions: int) -> nn.Module:
    try:
        from monai.networks.nets import resnet10, resnet18, resnet34, resnet50
    except ImportError as error:
        raise UsageError("this needs MONAI", remedy="pip install 'headct[baselines]'") from error
    build: Any = {10: resnet10, 18: resnet18, 34: resnet34, 50: resnet50}[config.depth]
    net: nn.Module = build(
        spatial_dims=dimensions,
        n_input_channels=len(config.windows),
        feed_forward=False,
        # one scan a step may be all that fits, and statistics of one scan are none
        norm=("group", {"num_groups": 8}),
    )
    return net
