"""Queries, keys and values of all heads out of one product, the first two turned by their places.

A CPU has a function with a gradient of its own, a GPU a Triton kernel as operators of torch, which
a compiler takes as they stand; anything else is left to the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headct.model.position import rotate, turned
from headct.views.backend import has_kernels

KERNEL_SIZES = (16, 32, 64, 128, 256)
"""Widths of one head that the kernel takes: powers of two."""


def split_heads(qkv: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[b t 3 h e] and rotations [b t 1 1 e/2 2], None for none -> three [b h t e]."""
    if on_cpu(qkv):
        return RotatedHeads.apply(qkv, rotation)  # type: ignore[no-any-return, no-untyped-call]
    v = qkv[:, :, 2]
    if rotation is None:
        q, k = qkv[:, :, :2].unbind(2)
    elif not for_operators(qkv):
        q, k = rotate(qkv[:, :, :2], rotation).unbind(2)
    elif torch.is_grad_enabled():
        q, k, v = turned_heads(qkv, rotation)
    else:
        q, k = turned_queries_keys(qkv, rotation).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def for_operators(qkv: Tensor) -> bool:
    """Whether the kernel takes heads of this size; others are left to a compiler."""
    return qkv.device.type == "cuda" and qkv.shape[-1] in KERNEL_SIZES


def on_cpu(x: Tensor) -> bool:
    """Whether the functions written by hand are the faster ones; a compiler fuses its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def backwards(rotation: Tensor) -> Tensor:
    """The same rotations [... 2], cosine and sine, by the negative angles."""
    cosine, sine = rotation.unbind(-1)
    return torch.stack([cosine, -sine], dim=-1)


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
        back = None if rotation is None else backwards(rotation)
        for part, grad in enumerate(grads):
            grad = grad if back is None or part == 2 else turned(grad, back)
            of_qkv[:, :, part] = grad.transpose(1, 2)
        return of_qkv, None


@torch.library.custom_op(
    "headct::turned_queries_keys", mutates_args=(), schema="(Tensor qkv, Tensor rotation) -> Tensor"
)
def turned_queries_keys(qkv: Tensor, rotation: Tensor) -> Tensor:
    """[b t 3 h e] and rotations [b t 1 1 e/2 2] -> [b t 2 h e]; knows no gradient.

    An operator of torch, as `turned_heads` is: a compiler takes it as it stands.
    """
    out = qkv.new_empty(*qkv.shape[:2], 2, *qkv.shape[3:])
    _turn(qkv.unbind(2)[:2], rotation, out.unbind(2))
    return out


@torch.library.custom_op(
    "headct::turned_heads",
    mutates_args=(),
    schema="(Tensor qkv, Tensor rotation) -> (Tensor, Tensor, Tensor)",
)
def turned_heads(qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[b t 3 h e] and rotations [b t 1 1 e/2 2] -> three [b t h e], the first two rotated."""
    b, t, _three, heads, size = qkv.shape
    q, k, v = (qkv.new_empty(b, t, heads, size) for _ in range(3))
    _turn(qkv.unbind(2), rotation, (q, k, v))
    return q, k, v


@torch.library.custom_op(
    "headct::turned_back",
    mutates_args=(),
    schema="(Tensor of_q, Tensor of_k, Tensor of_v, Tensor rotation) -> Tensor",
)
def _turned_back(of_q: Tensor, of_k: Tensor, of_v: Tensor, rotation: Tensor) -> Tensor:
    """Gradients of three [b t h e] as that of [b t 3 h e]."""
    b, t, heads, size = of_q.shape
    out = of_q.new_empty(b, t, 3, heads, size)
    _turn((of_q, of_k, of_v), rotation, out.unbind(2), back=True)
    return out


@turned_queries_keys.register_fake
def _(qkv: Tensor, _rotation: Tensor) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], 2, *qkv.shape[3:])


@turned_heads.register_fake
def _(qkv: Tensor, _rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, t, _three, heads, size = qkv.shape
    q, k, v = (qkv.new_empty(b, t, heads, size) for _ in range(3))
    return q, k, v


@_turned_back.register_fake
def _(of_q: Tensor, _of_k: Tensor, _of_v: Tensor, _rotation: Tensor) -> Tensor:
    b, t, heads, size = of_q.shape
    return of_q.new_empty(b, t, 3, heads, size)


def _keep_rotation(ctx: Any, inputs: tuple[Tensor, Tensor], output: object) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[1])


def _of_turned_heads(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
    (rotation,) = ctx.saved_tensors
    return _turned_back(*grads, rotation), None


turned_heads.register_autograd(_of_turned_heads, setup_context=_keep_rotation)


def _turn(
    vectors: Sequence[Tensor], rotation: Tensor, outs: Sequence[Tensor], *, back: bool = False
) -> None:
    """Queries and keys [b t h e] turned, and values copied where there are any."""
    if has_kernels(rotation.device):
        from headct.model.rotation_kernel import turn

        turn(vectors, rotation, outs, back=back)
        return
    rotation = (backwards(rotation) if back else rotation)[:, :, 0]
    for out, vector in zip(outs[:2], vectors, strict=False):
        out.copy_(turned(vector, rotation))
    for out, vector in zip(outs[2:], vectors[2:], strict=True):
        out.copy_(vector)
