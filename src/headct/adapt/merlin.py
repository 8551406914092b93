"""Merlin's image encoder: a ResNet-152 whose kernels were inflated from 2D to 3D."""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = (3, 8, 36, 3)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
FEATURES = WIDTHS[-1] * EXPANSION


class MerlinTrunk(nn.Module):
    """Everything up to the average pool, with the names of Merlin's checkpoint.

    Source:
        Blankemeier et al. 2024, Merlin: A Vision Language Foundation Model for 3D CT; Carreira and
        Zisserman 2017, Quo Vadis, Action Recognition? (inflation); He et al. 2016.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        n_in = 64
        for i, (n_blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            stride = 1 if i == 0 else 2
            blocks = [Bottleneck(n_in, width, stride)]
            n_in = width * EXPANSION
            blocks += [Bottleneck(n_in, width, 1) for _ in range(n_blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Channels [b 3 z x y] -> vectors [b 2048]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(len(BLOCKS)):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3, 4))


class Bottleneck(nn.Module):
    """1 x 1 x 1, 3 x 3 x 3 with the stride, 1 x 1 x 1, and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = width * EXPANSION
        self.conv1 = nn.Conv3d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv3d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm3d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[b c z y x] -> [b n_out z y x], smaller by the stride."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return out
