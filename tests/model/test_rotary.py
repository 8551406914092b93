"""Queries and keys turned by hand, on a CPU and as operators of torch, against `rotate`."""

from __future__ import annotations

import pytest
import torch

from headct.model import rotary
from headct.model.position import rotate, rotations
from headct.model.rotary import RotatedHeads, split_heads, turned_heads, turned_queries_keys


@pytest.fixture
def qkv() -> torch.Tensor:
    """[b t 3 h e]."""
    return torch.randn(2, 5, 3, 2, 8, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture
def rotation() -> torch.Tensor:
    """[b t 1 1 e/2 2]."""
    centre_mm = 50 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))
    periods_mm = 10 + 90 * torch.rand(4, 3, generator=torch.Generator().manual_seed(4))
    return rotations(centre_mm, periods_mm)[:, :, None, None].double()


def test_heads_are_the_rotated_parts(qkv: torch.Tensor, rotation: torch.Tensor) -> None:
    q, k, v = RotatedHeads.apply(qkv, rotation)
    for b, t, h in [(0, 0, 0), (1, 4, 1), (0, 3, 1)]:
        turn = rotation[b, t, 0, 0]
        torch.testing.assert_close(q[b, h, t], rotate(qkv[b, t, 0, h], turn))
        torch.testing.assert_close(k[b, h, t], rotate(qkv[b, t, 1, h], turn))
        assert torch.equal(v[b, h, t], qkv[b, t, 2, h])
    for part, plain in enumerate(RotatedHeads.apply(qkv, None)):
        assert torch.equal(plain, qkv[:, :, part].transpose(1, 2))


def test_gradients_of_heads_are_turned_back(qkv: torch.Tensor, rotation: torch.Tensor) -> None:
    qkv.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: RotatedHeads.apply(x, rotation), qkv)
    assert torch.autograd.gradcheck(lambda x: RotatedHeads.apply(x, None), qkv)


def test_operators_give_the_same_heads_and_gradients(
    qkv: torch.Tensor, rotation: torch.Tensor
) -> None:
    expected = RotatedHeads.apply(qkv, rotation)
    for part, wanted in zip(turned_heads(qkv, rotation), expected, strict=True):
        torch.testing.assert_close(part.transpose(1, 2), wanted)
    pairs = turned_queries_keys(qkv, rotation)
    for part, wanted in zip(pairs.unbind(2), expected, strict=False):
        torch.testing.assert_close(part.transpose(1, 2), wanted)
    qkv.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: turned_heads(x, rotation), qkv)


@pytest.mark.parametrize("learns", [False, True])
def test_operators_keep_what_compilers_are_told(
    qkv: torch.Tensor, rotation: torch.Tensor, learns: bool
) -> None:
    operator = turned_heads if learns else turned_queries_keys
    torch.library.opcheck(operator, (qkv.float().requires_grad_(learns), rotation.float()))


@pytest.mark.parametrize("has_operators", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_heads_are_the_same_on_every_way(
    qkv: torch.Tensor,
    rotation: torch.Tensor,
    has_operators: bool,
    learns: bool,
    turns: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = RotatedHeads.apply(qkv, rotation if turns else None)
    monkeypatch.setattr(rotary, "on_cpu", lambda _: False)
    monkeypatch.setattr(rotary, "for_operators", lambda _: has_operators)
    with torch.set_grad_enabled(learns):
        found = split_heads(qkv, rotation if turns else None)
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted)
