"""A small 3D residual network: what one would train without an encoder."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from headct.config import Config, Count
from headct.model.tokens import to_channels, window_tensors
from headct.volume.window import WINDOWS, Window


class CnnConfig(Config):
    """Architecture of a Cnn3d."""

    widths: tuple[Count, ...] = Field(default=(16, 32, 64, 128), min_length=1)
    """Channels per stage; every stage halves the grid."""
    windows: tuple[Window, ...] = Field(default=WINDOWS, min_length=1)
    """HU windows, one input channel each."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Before the last layer."""


class Cnn3d(nn.Module):
    """Residual stages of stride 2 over windowed voxels, mean and max pooling, one linear layer.

    Source:
        He et al. 2016 (residual blocks), in 3D with group norm for small batches.
    """

    def __init__(self, config: CnnConfig, n_findings: int) -> None:
        super().__init__()
        self.config = config
        inputs = (len(config.windows), *config.widths[:-1])
        pairs = zip(inputs, config.widths, strict=True)
        self.stages = nn.ModuleList(Stage(before, after) for before, after in pairs)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.widths[-1], n_findings)

    def forward(self, hu: Tensor) -> Tensor:
        """HU [b z y x] -> logits [b f]."""
        level_hu, width_hu = window_tensors(self.config.windows, hu.device)
        flat = to_channels(hu.float().flatten(1)[:, None], level_hu, width_hu)  # [b 1 c v]
        x = flat[:, 0].reshape(len(hu), -1, *hu.shape[1:])
        for stage in self.stages:
            x = stage(x)
        x = x.flatten(2).float()
        logits: Tensor = self.head(self.dropout(torch.cat([x.mean(2), x.amax(2)], 1)))
        return logits


class Stage(nn.Module):
    """A strided convolution, then one residual block."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, after)
        self.conv = nn.Conv3d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, after)

    def forward(self, x: Tensor) -> Tensor:
        """[b c z y x] -> [b c' z/2 y/2 x/2]."""
        x = F.relu(self.norm1(self.down(x)))
        return F.relu(x + self.norm2(self.conv(x)))
