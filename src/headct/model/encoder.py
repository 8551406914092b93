"""ViT3D: a head CT as patches of a few mm -> one vector for the scan and one for every patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headct.model.architecture import EncoderConfig
from headct.model.attention import attention_weights
from headct.model.blocks import Block, init_linear
from headct.model.position import (
    PositionTable,
    draw_position_scale,
    prefixed_rotations,
    rope_periods_mm,
)
from headct.model.tokens import (
    InputWindows,
    Tokens,
    ZyxInt,
    every_patch,
    gather_patches,
    grid_shape,
    patch_centres_mm,
    window_tensors,
)
from headct.views.backend import for_kernels
from headct.views.constants import constant
from headct.volume.volume import AIR_HU


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
        self.norm = nn.LayerNorm(width, eps=config.final_norm_eps)
        grid = config.position_grid_zyx
        self.positions = None if grid is None else PositionTable(grid, width)
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
            channels: [b c z y x] in `config.channel_range`, channels as in `config.windows`; any
                field of view, but that of the table where positions are learned.
            spacing_mm_zyx: voxel size, one for all or [b 3]; None: that of the config.
            keep: [b t] long, patches to compute; None computes all.
        """
        air = self.config.channel_range[0]
        patches = gather_patches(channels, self.config.patch_voxels_zyx, keep, outside=air)
        return self._encode_at(patches.flatten(2), channels.shape[2:], spacing_mm_zyx, keep)

    def forward_hu(
        self,
        hu: Tensor,
        spacing_mm_zyx: Sequence[float] | Tensor | None = None,
        keep: Tensor | None = None,
        windows: InputWindows | None = None,
        n_blocks: int = 0,
    ) -> Tokens:
        """Encode HU; only kept patches are windowed.

        Args:
            hu: [b z y x], any number type.
            spacing_mm_zyx: as in `forward`.
            keep: as in `forward`.
            windows: what channels are made with; None: the windows of the config.
            n_blocks: as in `encode`.
        """
        patches = self.window_patches(hu, keep, windows or self.own_windows(hu.device))
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
        patches = self.window_patches(hu, keep, self.own_windows(hu.device))
        index = self._index(patches, keep)
        centre_mm = self.centres_mm(index, hu.shape[1:], spacing_mm_zyx)
        grid = grid_shape(hu.shape[1:], self.config.patch_voxels_zyx)
        x, rotation = self.embed(patches, centre_mm, index, grid)
        for block in self.blocks[:-1]:
            x = block(x, rotation)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        q, k, _ = last.attn.queries_keys_values(last.norm1(x), rotation)
        return attention_weights(q[:, :, :1], k)[:, :, 0, self.n_prefix :]

    def own_windows(self, device: torch.device) -> InputWindows:
        """The windows of the config."""
        return InputWindows(*window_tensors(self.config.windows, device))

    def window_patches(self, hu: Tensor, keep: Tensor | None, windows: InputWindows) -> Tensor:
        """Window channels [b t c*v] of patches of HU [b z y x]; arguments as in `forward_hu`."""
        patch, limits = self.config.patch_voxels_zyx, self.config.channel_range
        if for_kernels(hu):
            from headct.model.patch_kernel import window_patches_of

            reduced = torch.is_autocast_enabled("cuda")  # the first product wants it so
            dtype = torch.get_autocast_dtype("cuda") if reduced else torch.float32
            if keep is None:
                keep = every_patch(len(hu), grid_shape(hu.shape[1:], patch), hu.device)
            return window_patches_of(hu, patch, keep, AIR_HU, windows, limits, dtype)
        channels = windows.channels(gather_patches(hu, patch, keep).float()).flatten(2)
        low, high = limits
        if limits == (-1.0, 1.0):
            return channels
        return channels.add_(1.0).mul_((high - low) / 2.0).add_(low)

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
        if not isinstance(spacing, Tensor):
            spacing = constant(spacing, index.device)
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
            patches: [b t c*v] channels in `config.channel_range`.
            centre_mm: [b t 3] in mm from the centre of the view.
            index: [b t] their numbers in the patch grid.
            grid_zyx: patches per axis.
            n_blocks: give the features after each of that many last blocks as well.
        """
        x, rotation = self.embed(patches, centre_mm, index, grid_zyx)
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

    def embed(
        self, patches: Tensor, centre_mm: Tensor, index: Tensor, grid_zyx: ZyxInt
    ) -> tuple[Tensor, Tensor | None]:
        """The sequence before the first block [b r+1+t d], and its rotations [b r+1+t 1 1 e/2 2].

        Arguments as in `encode`; there are no rotations where positions are learned.
        """
        n = patches.shape[0]
        prefix = torch.cat([self.cls, self.registers], dim=1).expand(n, -1, -1)
        embedded = self.patch_embed(patches)
        if self.positions is not None:
            embedded = embedded + self.positions(index, grid_zyx)
        x = torch.cat([prefix, embedded], dim=1)
        if self.positions is not None:
            return x, None
        if self.training:
            centre_mm = centre_mm * draw_position_scale(
                n, *self.config.rope_jitter, device=centre_mm.device
            )
        return x, prefixed_rotations(centre_mm, self.periods_mm, self.n_prefix)
