"""ViT3D: a head CT as patches of a few mm -> one vector for the scan and one for every patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from headct.config import Config
from headct.model.position import draw_position_scale, rope_periods_mm, rotate, rotations
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

PLAIN_ATTENTION_BELOW_TOKENS = 1700
"""In bf16 on a CPU, plain products beat the fused kernel below this (docs/explanation/encoder)."""


class EncoderConfig(Config):
    """Architecture of a ViT3D; everything that its weights depend on."""

    width: int = Field(gt=0)
    """Numbers per token."""
    depth: int = Field(gt=0)
    """Transformer blocks."""
    heads: int = Field(gt=0)
    """Attention heads; the width of one head must be even and at least 6."""
    mlp_ratio: int = Field(4, gt=0)
    """Hidden width of the MLP, as a multiple of the width."""
    patch_voxels_zyx: ZyxInt
    """Voxels per patch."""
    spacing_mm_zyx: tuple[float, float, float]
    """mm, voxel size that the patch embedding is made for."""
    windows: tuple[Window, ...] = Field(WINDOWS, min_length=1)
    """HU windows, one input channel each."""
    n_tokens: int = Field(gt=0)
    """Patches computed per whole scan; the most head-like ones."""
    n_registers: int = Field(4, ge=0)
    """Learned tokens without an output, where attention can put what belongs nowhere."""
    layer_scale: float | None = None
    """Start value of the per-channel scale of each branch; 1e-5 for long runs, none for short."""
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
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


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Tokens [b t d] and their rotations [b t 1 1 e/2] -> [b t d]."""
        q, k, v = self.queries_keys_values(x, rotation)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def queries_keys_values(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [b h t e]; queries and keys are rotated."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))  # [b t 3 h e]
        q, k = rotate(qkv[:, :, :2], rotation).permute(2, 0, 3, 1, 4)
        return q, k, qkv[:, :, 2].transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(e)) v, by whichever kernel is the faster one here; all [b h t e]."""
    on_cpu_in_bf16 = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if on_cpu_in_bf16 and q.shape[-2] < PLAIN_ATTENTION_BELOW_TOKENS:
        return attention_weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k' / sqrt(e)): [b h t t]; the softmax sums in float32 in every dtype."""
    scale = q.shape[-1] ** -0.5
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1)


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b t d] -> [b t d]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Branch(nn.Module):
    """What a residual branch is multiplied with: LayerScale, and drop path in training."""

    def __init__(self, width: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.gamma = (
            None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b t d] -> [b t d]; some samples are zeroed and the others scaled up in training."""
        if self.gamma is not None:
            x = x * self.gamma
        if self.drop_path == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_path
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep) / keep


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.branch1 = Branch(width, layer_scale, drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.branch2 = Branch(width, layer_scale, drop_path)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Tokens [b t d] and their rotations [b t 1 1 e/2] -> [b t d]."""
        x = x + self.branch1(self.attn(self.norm1(x), rotation))
        return x + self.branch2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


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
    ) -> Tokens:
        """Encode HU; only kept patches are windowed.

        Args:
            hu: [b z y x], any number type.
            spacing_mm_zyx: as in `forward`.
            keep: as in `forward`.
            windows: levels and widths in HU, each [c] or [b c]; None: those of the config.
        """
        voxels = gather_patches(hu, self.config.patch_voxels_zyx, keep).float()
        level_hu, width_hu = windows or window_tensors(self.config.windows, hu.device)
        patches = to_channels(voxels, level_hu, width_hu)
        return self._encode_at(patches.flatten(2), hu.shape[1:], spacing_mm_zyx, keep)

    def _encode_at(
        self,
        patches: Tensor,
        shape_zyx: Sequence[int],
        spacing_mm_zyx: Sequence[float] | Tensor | None,
        keep: Tensor | None,
    ) -> Tokens:
        index = torch.arange(patches.shape[1], device=patches.device) if keep is None else keep
        index = index.expand(patches.shape[0], -1)
        centre_mm = self.centres_mm(index, shape_zyx, spacing_mm_zyx)
        grid = grid_shape(shape_zyx, self.config.patch_voxels_zyx)
        return self.encode(patches, centre_mm, index, grid)

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


def prefixed_rotations(centre_mm: Tensor, periods_mm: Tensor, n_prefix: int) -> Tensor:
    """Rotations of a sequence that starts with tokens without a place: [b r+t 1 1 e/2]."""
    rotation = rotations(centre_mm, periods_mm)
    unrotated = rotation.new_ones(rotation.shape[0], n_prefix, rotation.shape[-1])
    return torch.cat([unrotated, rotation], dim=1)[:, :, None, None]


def init_linear(module: nn.Module) -> None:
    """ViT's start: small normal weights, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
