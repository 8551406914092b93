"""Architecture of the encoder: the config that its weights depend on, and the sizes by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from headct.config import Config, Count, Positive, rises
from headct.volume.window import WINDOWS, Window

Counts = tuple[Count, Count, Count]
"""Along z, y and x."""
Factor = Annotated[float, Field(ge=1)]


class EncoderConfig(Config):
    """Architecture of a ViT3D; everything that its weights depend on."""

    width: int = Field(gt=0)
    """Numbers per token."""
    depth: int = Field(gt=0)
    """Transformer blocks."""
    heads: int = Field(gt=0)
    """Attention heads; with rotary positions the width of one must be even and at least 6."""
    mlp_ratio: int = Field(default=4, gt=0)
    """Hidden width of the MLP, as a multiple of the width."""
    patch_voxels_zyx: Counts
    """Voxels per patch."""
    spacing_mm_zyx: tuple[Positive, Positive, Positive]
    """mm, voxel size that the patch embedding is made for."""
    windows: tuple[Window, ...] = Field(default=WINDOWS, min_length=1)
    """HU windows, one input channel each."""
    n_tokens: int = Field(gt=0)
    """Patches computed per whole scan; the most head-like ones."""
    n_registers: int = Field(default=4, ge=0)
    """Learned tokens without an output, where attention can put what belongs nowhere."""
    layer_scale: Positive | None = None
    """Start value of the per-channel scale of each branch; 1e-5 for long runs, none for short."""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of samples that skip a branch in training, in the last block; linear from 0."""
    position_grid_zyx: Counts | None = None
    """Patches per axis of a table of learned positions, as in FM-CT; None: rotary ones in mm."""
    channel_range: tuple[float, float] = (-1.0, 1.0)
    """Value of a channel at the lower and at the upper end of its window."""
    final_norm_eps: float = Field(default=1e-5, gt=0.0)
    """Smallest variance that the last norm divides by."""
    rope_periods_mm: Annotated[tuple[Positive, Positive], AfterValidator(rises)] = (24.0, 1200.0)
    """mm, shortest and longest period of the rotary positions."""
    rope_jitter: tuple[Factor, Factor] = (1.15, 1.05)
    """Largest random stretch of the coordinates in training: common, per axis."""

    @model_validator(mode="after")
    def _heads_fit(self) -> EncoderConfig:
        head_width, rest = divmod(self.width, self.heads)
        is_rotary = self.position_grid_zyx is None
        if rest or (is_rotary and (head_width % 2 or head_width < 6)):
            of = " of an even width >= 6" if is_rotary else ""
            raise ValueError(f"width {self.width} does not give {self.heads} heads{of}")
        if not self.channel_range[0] < self.channel_range[1]:
            raise ValueError(f"channel_range {self.channel_range} does not rise")
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
_FMCT = {
    "patch_voxels_zyx": (12, 12, 12),
    "spacing_mm_zyx": (2.0, 2.0, 2.0),  # in name only: the head is stretched to a cube
    "n_tokens": 512,
    "position_grid_zyx": (8, 8, 8),
    "channel_range": (0.0, 1.0),
    "final_norm_eps": 1e-6,
    "rope_periods_mm": (151.0, 1.51e6),  # 2 pi and 2 pi 10,000 patches, for the decoder's sines
}

ENCODERS = {
    "demo": _preset(192, 4, 3, **_DEMO),
    "small": _preset(384, 12, 6, **_SMALL),
    "base": _preset(768, 12, 12, **_BASE, **_DEEP, drop_path=0.1),
    "large": _preset(1024, 24, 16, **_BASE, **_DEEP, drop_path=0.2),
    "fmct": _preset(768, 12, 12, **_FMCT),
}
"""Encoders by name; each fits the preprocessing of the same name (large: that of base)."""
