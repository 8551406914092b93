"""Transformer blocks that encoder and decoder share; tokens are [b t d]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.model.attention import Attention


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b t d] -> [b t d]."""
        return self.fc2(gelu_after(self.fc1, x))  # type: ignore[no-any-return]


def gelu_after(linear: nn.Linear, x: Tensor) -> Tensor:
    """GELU of a linear layer's output [b t h].

    Where a GPU learns nothing, in half precision, cuBLAS does both at once and what lies between
    is never written. Its GELU is the one by tanh: off by 5e-4 at most, where bf16 rounds by 4e-3.
    """
    is_reduced = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    is_plain = type(linear) is nn.Linear  # no adapter of LoRA around it
    if torch.is_grad_enabled() or not (is_reduced and is_plain):
        return F.gelu(linear(x))
    dtype = torch.get_autocast_dtype("cuda")  # which autocast does not know for this product
    weight, bias, flat = (v.to(dtype) for v in (linear.weight, linear.bias, x.flatten(0, 1)))
    found = torch._addmm_activation(bias, flat, weight.T, use_gelu=True)
    return torch.unflatten(found, 0, x.shape[:2])


class Branch(nn.Module):
    """What a residual branch is multiplied with: LayerScale, and drop path in training."""

    keep: Tensor

    def __init__(self, width: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.drops = drop_path > 0.0
        # a tensor, so that blocks which differ in it alone share one compiled graph
        self.register_buffer("keep", torch.tensor(1.0 - drop_path), persistent=False)
        self.gamma = (
            None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[b t d] -> [b t d]; some samples are zeroed and the others scaled up in training."""
        if self.gamma is not None:
            x = x * self.gamma
        if not self.drops or not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < self.keep) / self.keep


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

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Tokens [b t d] and their rotations [b t 1 1 e/2 2], None for none -> [b t d]."""
        x = x + self.branch1(self.attn(self.norm1(x), rotation))
        return x + self.branch2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def init_linear(module: nn.Module) -> None:
    """ViT's start: small normal weights, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
