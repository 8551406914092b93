"""Self-attention with rotary positions, and what a CPU needs to do it fast.

Vectors of all heads come as [b t 3 h e] from one product: queries, keys, values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.model.position import rotate, turned

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
        if on_cpu(qkv):
            return RotatedHeads.apply(qkv, rotation)  # type: ignore[no-any-return, no-untyped-call]
        q_k = qkv[:, :, :2] if rotation is None else rotate(qkv[:, :, :2], rotation)
        q, k = q_k.permute(2, 0, 3, 1, 4)
        return q, k, qkv[:, :, 2].transpose(1, 2)


def on_cpu(x: Tensor) -> bool:
    """Whether the functions written by hand are the faster ones; a compiler fuses its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


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


class RotatedHeads(torch.autograd.Function):
    """Queries, keys and values of every head, in the order that products want.

    Forward and backward write each vector once, where a chain of views is gathered, zero-filled and
    summed again by the autograd of each.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotation: Tensor | None) -> tuple[Tensor, ...]:
        """[b t 3 h e] and rotations [b t 1 1 e/2 2] -> three [b h t e], the first two rotated."""
        parts = qkv.permute(2, 0, 3, 1, 4)  # [3 b h t e]
        heads = torch.empty_like(parts, memory_format=torch.contiguous_format)
        if rotation is None:
            heads.copy_(parts)
        else:
            rotation = rotation.transpose(1, 3)[:, 0]  # [b 1 t e/2 2]
            heads[:2] = turned(parts[:2], rotation)
            heads[2] = parts[2]
        ctx.save_for_backward(rotation)
        return heads.unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Turned back by the same angles."""
        (rotation,) = ctx.saved_tensors
        b, h, t, e = grads[0].shape
        of_qkv = grads[0].new_empty(b, t, 3, h, e)
        if rotation is not None:
            cosine, sine = rotation.unbind(-1)
            rotation = torch.stack([cosine, -sine], dim=-1)
        for part, grad in enumerate(grads):
            is_turned = rotation is not None and part < 2
            grad = turned(grad, rotation) if is_turned else grad
            of_qkv[:, :, part] = grad.transpose(1, 2)
        return of_qkv, None


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
