"""Attention, and its parts written by hand for a CPU, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from headct.model import attention
from headct.model.attention import Attention, RecomputedAttention, attend
from headct.model.position import rotations


def test_attention_is_the_definition_in_both_precisions() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(1, 2, 5, 8)
    for h in range(2):
        for i in range(5):
            score = torch.stack([q[0, h, i] @ k[0, h, j] / math.sqrt(8) for j in range(5)])
            expected[0, h, i] = score.softmax(0) @ v[0, h]
    torch.testing.assert_close(attend(q, k, v), expected)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    torch.testing.assert_close(attend(q, k, v).float(), expected, atol=0.05, rtol=0.05)
    q.requires_grad_()
    torch.testing.assert_close(attend(q, k, v).float(), expected, atol=0.05, rtol=0.05)


@pytest.fixture
def qkv() -> torch.Tensor:
    """[b t 3 h e]."""
    return torch.randn(2, 5, 3, 2, 8, generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 5 * 5 * 8, 2**20])
def test_gradients_of_recomputed_attention(
    qkv: torch.Tensor, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk_bytes)
    q, k, v = (x.transpose(1, 2).contiguous().requires_grad_() for x in qkv.unbind(2))
    assert torch.autograd.gradcheck(RecomputedAttention.apply, (q, k, v))


def test_both_ways_to_learn_in_bf16_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = torch.randn(3, 2, 3, 40, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    pull = torch.randn(2, 3, 40, 16, generator=torch.Generator().manual_seed(6)).bfloat16()
    gradients = []
    for limit in (0, 1000):
        monkeypatch.setattr(attention, "RECOMPUTED_FROM_TOKENS", limit)
        leaf = parts.clone().requires_grad_()
        attend(*leaf).backward(pull)
        gradients.append(leaf.grad.float())
    torch.testing.assert_close(*gradients, atol=0.02, rtol=0.02)


def test_what_a_compiler_would_get_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    layer, x = Attention(32, 2), torch.randn(2, 6, 32)
    periods_mm = 10 + 90 * torch.rand(8, 3)
    rotation = rotations(50 * torch.randn(2, 6, 3), periods_mm)[:, :, None, None]
    by_hand = layer(x, rotation)
    monkeypatch.setattr(attention, "on_cpu", lambda _: False)
    torch.testing.assert_close(layer(x, rotation), by_hand)
