"""The rotation of queries and keys on a GPU against torch's; on a CPU with TRITON_INTERPRET=1."""

import os

import pytest
import torch

from headct.model import rotary
from headct.model.position import rotate

pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA")
from headct.model.rotation_kernel import turn

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU, and TRITON_INTERPRET is not 1"
)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def angles(b: int, t: int, pairs: int) -> torch.Tensor:
    angle = 3 * drawn(b, t, 1, 1, pairs)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_values", [False, True])
@pytest.mark.parametrize("scans_with_own_places", [1, 3])
def test_turns_as_torch_does(dtype, has_values, scans_with_own_places):
    qkv = drawn(3, 21, 3, 2, 16).to(DEVICE, dtype)
    rotation = angles(scans_with_own_places, 21, 8).to(DEVICE)
    n = 3 if has_values else 2
    out = torch.full((3, 21, n, 2, 16), torch.nan, dtype=dtype, device=DEVICE)
    turn(qkv.unbind(2)[:n], rotation, out.unbind(2))
    torch.testing.assert_close(out[:, :, :2], rotate(qkv[:, :, :2], rotation), rtol=8e-3, atol=1e-5)
    if has_values:
        assert torch.equal(out[:, :, 2], qkv[:, :, 2])


def test_turns_back_gradients_of_any_strides():
    qkv, rotation = drawn(2, 21, 3, 2, 16).to(DEVICE), angles(2, 21, 8).to(DEVICE)
    q, k, v = qkv.unbind(2)
    turned = [q.contiguous(), k.transpose(1, 2).contiguous().transpose(1, 2), v]
    there = torch.empty_like(qkv)
    turn(turned, rotation, there.unbind(2))
    uneven = [*there.unbind(2)[:2], there[:, :, 2].mT.contiguous().mT]
    again = torch.full_like(qkv, torch.nan)
    turn(uneven, rotation, again.unbind(2), back=True)
    torch.testing.assert_close(again, qkv)


@pytest.mark.parametrize("n_scans", [0, 2])
def test_operators_pass_gradients_through_the_kernel(n_scans, monkeypatch):
    monkeypatch.setattr(rotary, "has_kernels", lambda _: True)
    rotation = angles(n_scans, 21, 8).to(DEVICE)
    qkv = drawn(n_scans, 21, 3, 2, 16).to(DEVICE).requires_grad_()
    weights = drawn(3, n_scans, 21, 2, 16).to(DEVICE)
    found = torch.stack(rotary.turned_heads(qkv, rotation))
    q, k = rotate(qkv[:, :, :2], rotation).unbind(2)
    expected = torch.stack([q, k, qkv[:, :, 2]])
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (
        torch.autograd.grad((part * weights).sum(), qkv)[0] for part in (found, expected)
    )
    torch.testing.assert_close(of_found, of_expected)
