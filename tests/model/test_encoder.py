"""The encoder: shapes, what it depends on, and what it must not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headct.config import check
from headct.errors import UsageError
from headct.model.architecture import ENCODERS, EncoderConfig
from headct.model.blocks import Branch
from headct.model.encoder import ViT3D
from headct.volume.preprocessing import PRESETS
from headct.volume.window import WINDOWS

TINY = ENCODERS["demo"].model_copy(update={"width": 48, "depth": 2, "heads": 3})


@pytest.fixture
def encoder() -> ViT3D:
    torch.manual_seed(0)
    return ViT3D(TINY).eval()


def some_hu(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-100, 200, shape, generator=generator, dtype=torch.int16)


def test_presets_have_the_sizes_of_the_recipe() -> None:
    millions = {"demo": 2.1, "small": 22, "base": 87}
    for name, expected in millions.items():
        with torch.device("meta"):
            n = sum(p.numel() for p in ViT3D(ENCODERS[name]).parameters())
        assert n / 1e6 == pytest.approx(expected, rel=0.03)
    for name in millions:
        assert ENCODERS[name].spacing_mm_zyx == PRESETS[name].spacing_mm_zyx


def test_hu_and_channels_give_the_same_tokens(encoder: ViT3D) -> None:
    hu = some_hu(2, 16, 24, 16)
    channels = torch.stack([window.apply(hu.float()) for window in WINDOWS], dim=1)
    keep = torch.tensor([[0, 3, 5], [1, 4, 11]])
    one, other = encoder.forward_hu(hu, keep=keep), encoder(channels, keep=keep)
    torch.testing.assert_close(one.cls, other.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.patches, other.patches, atol=1e-5, rtol=1e-4)
    assert one.cls.shape == (2, 48)
    assert one.registers.shape == (2, 4, 48)
    assert one.patches.shape == (2, 3, 48)
    assert one.centre_mm.shape == (2, 3, 3)
    assert one.grid_zyx == (2, 3, 2)
    assert torch.equal(one.index, keep)


def test_any_field_of_view(encoder: ViT3D) -> None:
    assert encoder.forward_hu(some_hu(1, 8, 8, 8)).patches.shape == (1, 1, 48)
    assert encoder.forward_hu(some_hu(1, 20, 9, 33)).patches.shape == (1, 3 * 2 * 5, 48)


def test_patches_that_are_not_kept_cannot_be_seen(encoder: ViT3D) -> None:
    hu = some_hu(1, 16, 16, 16)
    keep = torch.tensor([[0, 2, 7]])
    before = encoder.forward_hu(hu, keep=keep)
    hu[:, :8, :8, 8:] = 1000  # patch 1
    assert torch.equal(encoder.forward_hu(hu, keep=keep).cls, before.cls)
    hu[:, :8, 8:, :8] = 1000  # patch 2
    assert not torch.equal(encoder.forward_hu(hu, keep=keep).cls, before.cls)


def test_the_order_of_kept_patches_does_not_matter(encoder: ViT3D) -> None:
    hu = some_hu(1, 16, 16, 16)
    one = encoder.forward_hu(hu, keep=torch.tensor([[0, 2, 7]]))
    other = encoder.forward_hu(hu, keep=torch.tensor([[7, 0, 2]]))
    torch.testing.assert_close(one.cls, other.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.patches[:, [2, 0, 1]], other.patches, atol=1e-5, rtol=1e-4)


def test_position_is_in_mm(encoder: ViT3D) -> None:
    """A kept patch has the same place whatever box it is cut from, if the centre is the same."""
    inner = some_hu(1, 16, 16, 16)
    outer = torch.full((1, 32, 32, 32), -1024, dtype=torch.int16)
    outer[:, 8:24, 8:24, 8:24] = inner
    at = torch.tensor([[(z * 4 + y) * 4 + x for z in (1, 2) for y in (1, 2) for x in (1, 2)]])
    one, other = encoder.forward_hu(inner), encoder.forward_hu(outer, keep=at)
    torch.testing.assert_close(one.centre_mm, other.centre_mm)
    torch.testing.assert_close(one.cls, other.cls, atol=1e-5, rtol=1e-4)
    stretched = encoder.forward_hu(inner, (5.0, 5.0, 5.0))
    assert (stretched.cls - one.cls).abs().max() > 1e-4
    per_scan = encoder.forward_hu(inner, torch.full((1, 3), 5.0))
    assert torch.equal(per_scan.cls, stretched.cls)


def test_jitter_and_drop_path_act_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = ViT3D(TINY.model_copy(update={"drop_path": 0.5, "layer_scale": 0.1}))
    hu = some_hu(2, 16, 16, 16)
    assert not torch.equal(encoder.forward_hu(hu).cls, encoder.forward_hu(hu).cls)
    torch.manual_seed(7)
    one = encoder.forward_hu(hu).cls
    torch.manual_seed(7)
    assert torch.equal(encoder.forward_hu(hu).cls, one)
    encoder.eval()
    assert torch.equal(encoder.forward_hu(hu).cls, encoder.forward_hu(hu).cls)


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    branch = Branch(4, layer_scale=0.5, drop_path=0.25).train()
    out = branch(torch.ones(4000, 1, 4))
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0.0, 0.5 / 0.75])
    assert out.mean().item() == pytest.approx(0.5, rel=0.05)


def test_bf16_autocast_stays_near_and_keeps_norms_in_float32(encoder: ViT3D) -> None:
    hu = some_hu(1, 16, 16, 16)
    full = encoder.forward_hu(hu).cls
    with torch.autocast("cpu", torch.bfloat16):
        reduced = encoder.forward_hu(hu).cls
    assert reduced.dtype == torch.float32
    assert torch.cosine_similarity(full, reduced).item() > 0.999


def test_blocks_are_handed_out_on_request(encoder: ViT3D) -> None:
    hu = some_hu(1, 16, 16, 16)
    assert encoder.forward_hu(hu).blocks == ()
    tokens = encoder.forward_hu(hu, n_blocks=2)
    assert [b.shape for b in tokens.blocks] == [(1, 8, 48)] * 2
    torch.testing.assert_close(encoder.norm(tokens.blocks[-1]), tokens.patches)


def test_cls_attention_is_a_share(encoder: ViT3D) -> None:
    keep = torch.tensor([[0, 3, 5]])
    weights = encoder.cls_attention(some_hu(1, 16, 16, 16), keep=keep)
    assert weights.shape == (1, 3, 3)
    assert (weights > 0).all()
    assert (weights.sum(-1) < 1).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "does not give 5 heads"),
        ({"width": 12}, "even width >= 6"),
        ({"drop_path": 1.0}, "is not below 1"),
        ({"windows": []}, "at least 1 is wanted"),
        ({"widht": 192}, "did you mean width"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict[str, Any], words: str) -> None:
    values = ENCODERS["demo"].model_dump() | changes
    with pytest.raises(UsageError, match=words):
        check(values, EncoderConfig, "recipe")
