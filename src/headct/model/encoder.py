"""ViT3D: a head CT as patches of a few mm -> one vector for the scan and one for every patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from headct.config import Config
from headct.model.blocks import Block, attention_weights, init_linear
from headct.model.position import draw_position_scale, prefixed_rotations, rope_periods_mm
from headct.model.tokens import (
    Tokens,
    ZyxInt,
    gather_patches,
    grid_shape,
    patch_centres_mm,
    to_channels,
    window_tensors,
)
from headct.volume.window import WINDOWS, Window


class EncoderConfig(Config):
    """Architecture of a ViT3D; everything that its weights depend on."""

    width: int = Field(gt=0)
    """Numbers per token."""
    depth: int = Field(gt=0)
    """Transformer blocks."""
    heads: int = Field(gt=0)
    """Attention heads; the width of one head must be even and at least 6."""
    mlp_ratio: int = Field(default=4, gt=0)
    """Hidden width of the MLP, as a multiple of the width."""
    patch_voxels_zyx: ZyxInt
    """Voxels per patch."""
    spacing_mm_zyx: tuple[float, float, float]
    """mm, voxel size that the patch embedding is made for."""
    windows: tuple[Window, ...] = Field(default=WINDOWS, min_length=1)
    """HU windows, one input channel each."""
    n_tokens: int = Field(gt=0)
    """Patches computed per whole scan; the most head-like ones."""
    n_registers: int = Field(default=4, ge=0)
    """Learned tokens without an output, where attention can put what belongs nowhere."""
    layer_scale: float | None = None
    """Start value of the per-channel scale of each branch; 1e-5 for long runs, none for short."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of samples that skip a branch in training, in the last block; linear from 0."""
    rope_periods_mm: tuple[float, float] = (24.0, 1200.0)
    """mm, shortest and longest period of the rotary positions."""
    rope_jitter: tuple[float, float] = (1.15, 1.05)
    """Largest random stretch of the coordinates in training: common, per axis."""

    @model_validator(mode="after")
    def _heads_fit(self) -> EncoderConfig:
        head_width, rest = divmod(self.width, self.heads)
        if rest or head_width % 2 or head_width < 6:
            raise ValueError(
                f"width {self.width} does not give {self.heads} heads of an even width >= 6"
            )
        return self

    @property
    def patch_mm_zyx(self) -> tuple[float, float, float]:
        """Size of a patch, mm."""
        pairs = zip(self.patch_voxels_zyx, self.spacing_mm_zyx, strict=True)
        z, y, x = (voxels * mm for voxels, mm in pairs)
        return z, y, x

    @property
    def patch_voxels(self) -> int:
        """Voxels of one patch."""
        z, y, x = self.patch_voxels_zyx
        return z * y * x


def _preset(width: int, depth: int, heads: int, **values: Any) -> EncoderConfig:
    return EncoderConfig(width=width, depth=depth, heads=heads, **values)


_DEMO = {"patch_voxels_zyx": (8, 8, 8), "spacing_mm_zyx": (3.3, 3.3, 3.3), "n_tokens": 170}
_SMALL = {"patch_voxels_zyx": (8, 8, 8), "spacing_mm_zyx": (2.0, 2.0, 2.0), "n_tokens": 1200}
_BASE = {"patch_voxels_zyx": (4, 16, 16), "spacing_mm_zyx": (4.0, 1.0, 1.0), "n_tokens": 1200}
_DEEP = {"layer_scale": 1e-5}

ENCODERS = {
    "demo": _preset(192, 4, 3, **_DEMO),
    "small": _preset(384, 12, 6, **_SMALL),
    "base": _preset(768, 12, 12, **_BASE, **_DEEP, drop_path=0.1),
    "large": _preset(1024, 24, 16, **_BASE, **_DEEP, drop_path=0.2),
}
"""Encoders by name; each fits the preprocessing of the same name (large: that of base)."""


class ViT3D(nn.Module):
    """3D vision transformer over the kept patches of a volume.

    Source:
        Dosovitskiy et al. 2021 (ViT), Darcet et al. 2024 (registers), Su et al. 2021 (RoPE).
    """

    periods_mm: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, depth = config.width, config.heads, config.depth
        self.patch_embed = nn.Linear(len(config.windows) * config.patch_voxels, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.registers = nn.Parameter(torch.zeros(1, config.n_registers, width))
        drop = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio, config.layer_scale, p) for p in drop
        )
        self.norm = nn.LayerNorm(width)
        periods = rope_periods_mm(width // heads // 2, *config.rope_periods_mm)
        self.register_buffer("periods_mm", periods, persistent=False)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.registers, std=0.02)
        self.apply(init_linear)

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return 1 + self.config.n_registers

    def forward(
        self,
        channels: Tensor,
        spacing_mm_zyx: Sequence[float] | Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tokens:
        """Encode window channels.

        Args:
            channels: [b c z y x] in [-1, 1], channels as in `config.windows`; any field of view.
            spacing_mm_zyx: voxel size, one for all or [b 3]; None: that of the config.
            keep: [b t] long, patches to compute; None computes all.
        """
        patches = gather_patches(channels, self.config.patch_voxels_zyx, keep, outside=-1.0)
        return self._encode_at(patches.flatten(2), channels.shape[2:], spacing_mm_zyx, keep)

    def forward_hu(
        self,
        hu: Tensor,
        spacing_mm_zyx: Sequence[float] | Tensor | None = None,
        keep: Tensor | None = None,
        windows: tuple[Tensor, Tensor] | None = None,
        n_blocks: int = 0,
    ) -> Tokens:
        """Encode HU; only kept patches are windowed.

        Args:
            hu: [b z y x], any number type.
            spacing_mm_zyx: as in `forward`.
            keep: as in `forward`.
            windows: levels and widths in HU, each [c] or [b c]; None: those of the config.
            n_blocks: as in `encode`.
        """
        patches = self._window_patches(hu, keep, windows)
        return self._encode_at(patches, hu.shape[1:], spacing_mm_zyx, keep, n_blocks)

    def cls_attention(
        self,
        hu: Tensor,
        spacing_mm_zyx: Sequence[float] | Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """How CLS spreads its attention over the patches in the last block.

        Args:
            hu: [b z y x].
            spacing_mm_zyx: as in `forward`.
            keep: as in `forward`.

        Returns:
            [b h t], one row per head; what is missing to a sum of 1 goes to CLS and registers.
        """
        patches = self._window_patches(hu, keep)
        index = self._index(patches, keep)
        x, rotation = self.embed(patches, self.centres_mm(index, hu.shape[1:], spacing_mm_zyx))
        for block in self.blocks[:-1]:
            x = block(x, rotation)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        q, k, _ = last.attn.queries_keys_values(last.norm1(x), rotation)
        return attention_weights(q[:, :, :1], k)[:, :, 0, self.n_prefix :]

    def _window_patches(
        self, hu: Tensor, keep: Tensor | None, windows: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        voxels = gather_patches(hu, self.config.patch_voxels_zyx, keep).float()
        level_hu, width_hu = windows or window_tensors(self.config.windows, hu.device)
        return to_channels(voxels, level_hu, width_hu).flatten(2)

    def _index(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        index = torch.arange(patches.shape[1], device=patches.device) if keep is None else keep
        return index.expand(patches.shape[0], -1)

    def _encode_at(
        self,
        patches: Tensor,
        shape_zyx: Sequence[int],
        spacing_mm_zyx: Sequence[float] | Tensor | None,
        keep: Tensor | None,
        n_blocks: int = 0,
    ) -> Tokens:
        index = self._index(patches, keep)
        centre_mm = self.centres_mm(index, shape_zyx, spacing_mm_zyx)
        grid = grid_shape(shape_zyx, self.config.patch_voxels_zyx)
        return self.encode(patches, centre_mm, index, grid, n_blocks)

    def centres_mm(
        self,
        index: Tensor,
        shape_zyx: Sequence[int],
        spacing_mm_zyx: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        """Centres [b t 3] in mm of the patches `index` of volumes of a shape."""
        spacing = self.config.spacing_mm_zyx if spacing_mm_zyx is None else spacing_mm_zyx
        spacing = torch.as_tensor(spacing, device=index.device)
        return patch_centres_mm(index, shape_zyx, self.config.patch_voxels_zyx, spacing)

    def encode(
        self,
        patches: Tensor,
        centre_mm: Tensor,
        index: Tensor,
        grid_zyx: ZyxInt,
        n_blocks: int = 0,
    ) -> Tokens:
        """Encode patches that were cut already.

        Args:
            patches: [b t c*v] channels in [-1, 1].
            centre_mm: [b t 3] in mm from the centre of the view.
            index: [b t] their numbers in the patch grid, handed on.
            grid_zyx: patches per axis, handed on.
            n_blocks: give the features after each of that many last blocks as well.
        """
        x, rotation = self.embed(patches, centre_mm)
        after = []
        for block in self.blocks:
            x = block(x, rotation)
            after.append(x[:, self.n_prefix :])
        x = self.norm(x)
        return Tokens(
            cls=x[:, 0],
            registers=x[:, 1 : self.n_prefix],
            patches=x[:, self.n_prefix :],
            index=index,
            centre_mm=centre_mm,
            grid_zyx=grid_zyx,
            blocks=tuple(after[len(after) - n_blocks :]) if n_blocks else (),
        )

    def embed(self, patches: Tensor, centre_mm: Tensor) -> tuple[Tensor, Tensor]:
        """The sequence before the first block [b r+1+t d], and its rotations [b r+1+t 1 1 e/2]."""
        n = patches.shape[0]
        if self.training:
            centre_mm = centre_mm * draw_position_scale(
                n, *self.config.rope_jitter, device=centre_mm.device
            )
        prefix = torch.cat([self.cls, self.registers], dim=1).expand(n, -1, -1)
        x = torch.cat([prefix, self.patch_embed(patches)], dim=1)
        return x, prefixed_rotations(centre_mm, self.periods_mm, self.n_prefix)
