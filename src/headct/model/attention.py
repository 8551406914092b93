"""Self-attention with rotary positions, and what a CPU needs to do it fast.

Vectors of all heads come as [b t 3 h e] from one product: queries, keys, values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.model.rotary import on_cpu, split_heads

RECOMPUTED_FROM_TOKENS = 350
"""In bf16 on a CPU, storing the weights [t t] for backward is the faster way below this."""
CHUNK_BYTES = 2**22
"""Attention weights that backward makes at a time: what stays in a core's cache."""


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Tokens [b t d] and their rotations [b t 1 1 e/2 2], None for none -> [b t d]."""
        q, k, v = self.queries_keys_values(x, rotation)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def queries_keys_values(
        self, x: Tensor, rotation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each [b h t e]; queries and keys are rotated."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))  # [b t 3 h e]
        return split_heads(qkv, rotation)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(e)) v, by whichever kernel is the faster one here; all [b h t e]."""
    learning = torch.is_grad_enabled() and q.requires_grad
    if learning and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        if q.shape[-2] >= RECOMPUTED_FROM_TOKENS and on_cpu(q):
            return RecomputedAttention.apply(q, k, v)  # type: ignore[no-any-return, no-untyped-call]
        return attention_weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k' / sqrt(e)): [b h t t]; the softmax sums in float32 in every dtype."""
    scale = q.shape[-1] ** -0.5
    return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1)


class RecomputedAttention(torch.autograd.Function):
    """Attention whose weights are never stored: backward makes them again, a few heads at a time.

    torch's own fused kernel is the fast one forward; backward, it is slower than plain products.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k' / sqrt(e)) v, all [b h t e]."""
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Of q, k and v; with p the weights and g the gradient, that of the products is
        p (g v' - sum over keys of p g v').
        """
        q, k, v = (x.flatten(0, 1) for x in ctx.saved_tensors)  # [b*h t e]
        scale = q.shape[-1] ** -0.5
        q = q * scale
        grad, shape = grad.reshape(q.shape), grad.shape
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        n_at_a_time = max(1, CHUNK_BYTES // (q.shape[1] ** 2 * q.element_size()))
        for start in range(0, len(q), n_at_a_time):
            at = slice(start, start + n_at_a_time)
            p = torch.softmax(q[at] @ k[at].mT, dim=-1)
            torch.bmm(p.mT, grad[at], out=of_v[at])
            of_p = grad[at] @ v[at].mT
            of_products = torch._softmax_backward_data(of_p, p, -1, p.dtype)
            torch.bmm(of_products, k[at], out=of_q[at])
            torch.bmm(of_products.mT, q[at], out=of_k[at])
        return (of_q * scale).view(shape), of_k.view(shape), of_v.view(shape)
