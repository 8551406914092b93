"""Rotary positions on a GPU as one Triton kernel: every vector is read once and written once.

What a compiler makes of `position.turn_real` takes twice the time of reading and writing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS_AT_ONCE = 16


def turn(
    vectors: Sequence[Tensor], rotation: Tensor, outs: Sequence[Tensor], *, back: bool = False
) -> None:
    """Queries and keys turned by the angles of their tokens, and values copied.

    Args:
        vectors: queries, keys and perhaps values, each [b t h e], e a power of two.
        rotation: [b t 1 1 e/2 2] float32, as from `position.rotations`.
        outs: as vectors; written.
        back: turn by the negative angles, which is what gradients need.
    """
    b, t, heads, size = vectors[0].shape
    vectors = [v if v.stride(-1) == 1 else v.contiguous() for v in vectors]
    rotation = rotation[:, :, 0, 0].flatten(-2).expand(b, t, size)
    strides = [n for v in (*vectors, vectors[0])[:3] for n in v.stride()[:3]]
    strides += [n for v in (*outs, outs[0])[:3] for n in v.stride()[:3]]
    q, k, v = (*vectors, vectors[0])[:3]
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _turn[(triton.cdiv(t, TOKENS_AT_ONCE), b)](
            *(q, k, v, rotation, *(*outs, outs[0])[:3], t, -1.0 if back else 1.0),
            *(*strides, rotation.stride(0), rotation.stride(1)),
            has_values=len(vectors) == 3,
            heads=heads,
            size=size,
            at_once=TOKENS_AT_ONCE,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    rotation,
    q_out,
    k_out,
    v_out,
    n_tokens,
    sign,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    v_b,
    v_t,
    v_h,
    q_out_b,
    q_out_t,
    q_out_h,
    k_out_b,
    k_out_t,
    k_out_h,
    v_out_b,
    v_out_t,
    v_out_h,
    rotation_b,
    rotation_t,
    has_values: tl.constexpr,
    heads: tl.constexpr,
    size: tl.constexpr,
    at_once: tl.constexpr,
):
    token = tl.program_id(0) * at_once + tl.arange(0, at_once)[:, None]
    b = tl.program_id(1).to(tl.int64)
    within = token < n_tokens
    element = tl.arange(0, size)[None]
    at = rotation + b * rotation_b + token * rotation_t + element
    angles = tl.load(at, mask=within, other=0.0)
    cosine, sine = tl.split(tl.reshape(angles, (at_once, size // 2, 2)))
    sine = sine * sign
    q_at, k_at = q + b * q_b + token * q_t + element, k + b * k_b + token * k_t + element
    v_at = v + b * v_b + token * v_t + element
    q_to = q_out + b * q_out_b + token * q_out_t + element
    k_to = k_out + b * k_out_b + token * k_out_t + element
    v_to = v_out + b * v_out_b + token * v_out_t + element
    for head in range(heads):
        of_q = tl.load(q_at + head * q_h, mask=within, other=0.0)
        of_k = tl.load(k_at + head * k_h, mask=within, other=0.0)
        if has_values:
            of_v = tl.load(v_at + head * v_h, mask=within, other=0.0)
            tl.store(v_to + head * v_out_h, of_v, mask=within)
        tl.store(q_to + head * q_out_h, _turned(of_q, cosine, sine), mask=within)
        tl.store(k_to + head * k_out_h, _turned(of_k, cosine, sine), mask=within)


@triton.jit
def _turned(vectors, cosine, sine):  # type: ignore[no-untyped-def]
    """Neighbouring pairs as complex numbers, in float32."""
    n: tl.constexpr = vectors.shape[0]
    size: tl.constexpr = vectors.shape[1]
    a, b = tl.split(tl.reshape(vectors.to(tl.float32), (n, size // 2, 2)))
    turned = tl.join(a * cosine - b * sine, a * sine + b * cosine)
    return tl.reshape(turned, (n, size)).to(vectors.dtype)
