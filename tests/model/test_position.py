"""Rotary positions: the definition as loops, and what it promises."""

from __future__ import annotations

import math

import torch

from headct.model.position import (
    draw_position_scale,
    prefixed_rotations,
    rope_periods_mm,
    rotate,
    rotations,
    sines,
    turn_complex,
    turn_real,
)


def test_head_of_64_has_ten_pairs_per_axis_from_24_to_1200_mm() -> None:
    periods = rope_periods_mm(32, 24.0, 1200.0)
    assert torch.isfinite(periods).sum(dim=0).tolist() == [10, 10, 10]
    assert torch.isfinite(periods).sum(dim=1).tolist() == [1] * 30 + [0] * 2
    z = periods[:10, 0]
    torch.testing.assert_close(z[[0, -1]], torch.tensor([24.0, 1200.0]))
    torch.testing.assert_close(z[1:] / z[:-1], torch.full((9,), 50 ** (1 / 9)))


def test_rotation_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    centre_mm = torch.randn(1, 3, 3, generator=generator) * 60
    periods = rope_periods_mm(6, 24.0, 1200.0)
    vectors = torch.randn(1, 3, 12, generator=generator)
    expected = vectors.clone()
    for t in range(3):
        for pair in range(6):
            turns = sum(centre_mm[0, t, a] / periods[pair, a] for a in range(3))
            angle = 2 * math.pi * float(turns)
            a, b = vectors[0, t, 2 * pair], vectors[0, t, 2 * pair + 1]
            expected[0, t, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            expected[0, t, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    torch.testing.assert_close(rotate(vectors, rotations(centre_mm, periods)), expected)


def test_products_depend_on_the_distance_in_mm_only() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 64, generator=generator)
    periods = rope_periods_mm(32, 24.0, 1200.0)

    def product(from_mm: list[float], to_mm: list[float]) -> torch.Tensor:
        here, there = (torch.tensor([[mm]]) for mm in (from_mm, to_mm))
        return (rotate(q, rotations(here, periods)) * rotate(k, rotations(there, periods))).sum()

    near = product([0.0, 0.0, 0.0], [10.0, -20.0, 5.0])
    far = product([50.0, 30.0, -40.0], [60.0, 10.0, -35.0])
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert abs(near - product([0.0, 0.0, 0.0], [40.0, -20.0, 5.0])) > 0.1


def test_tokens_without_a_place_are_not_rotated() -> None:
    rotation = prefixed_rotations(torch.ones(2, 3, 3), rope_periods_mm(32, 24.0, 1200.0), 5)
    assert rotation.shape == (2, 8, 1, 1, 32, 2)
    assert (rotation[:, :5] == torch.tensor([1.0, 0.0])).all()
    assert not (rotation[:, 5:] == torch.tensor([1.0, 0.0])).all()


def test_both_ways_to_turn_agree() -> None:
    generator = torch.Generator().manual_seed(4)
    pairs = torch.randn(2, 4, 3, 8, 2, generator=generator)
    rotation = torch.randn(2, 4, 1, 8, 2, generator=generator)
    torch.testing.assert_close(turn_real(pairs, rotation), turn_complex(pairs, rotation))


def test_autocast_does_not_round_positions() -> None:
    centre_mm = torch.tensor([[[10.0, -97.0, 70.0]]])
    periods = rope_periods_mm(32, 24.0, 1200.0)
    exact = rotations(centre_mm, periods)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rotations(centre_mm, periods), exact)


def test_bf16_vectors_are_rotated_in_float32() -> None:
    vectors = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    rotation = rotations(torch.full((1, 4, 3), 777.0), rope_periods_mm(32, 24.0, 1200.0))
    out = rotate(vectors, rotation)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, rotate(vectors.float(), rotation).bfloat16())


def test_sines_are_the_definition() -> None:
    centre_mm = torch.tensor([[[10.0, -30.0, 70.0]]])
    out = sines(centre_mm, 14, 24.0, 1200.0)[0, 0]
    expected = []
    for mm in centre_mm[0, 0].tolist():
        angles = [2 * math.pi * mm / period for period in (24.0, 1200.0)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(out, torch.tensor([*expected, 0.0, 0.0]), atol=1e-5, rtol=1e-5)


def test_jitter_stays_in_its_range_and_follows_the_seed() -> None:
    torch.manual_seed(0)
    scale = draw_position_scale(2000, 1.15, 1.05, torch.device("cpu"))
    assert scale.shape == (2000, 1, 3)
    assert 1 / (1.15 * 1.05) <= float(scale.min()) < 0.86
    assert 1.16 < float(scale.max()) <= 1.15 * 1.05
    torch.manual_seed(0)
    assert torch.equal(scale, draw_position_scale(2000, 1.15, 1.05, torch.device("cpu")))
