"""Masked prediction against its formulas as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from headct.config import check
from headct.errors import UsageError
from headct.objective.mae import (
    LatConfig,
    MaeConfig,
    channel_errors,
    constant_errors,
    draw_masked,
    latent_loss,
    tissue_weights,
    weighted_mean,
)


@pytest.fixture
def target() -> torch.Tensor:
    """Windows of patches [b q c v], many voxels saturated."""
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, 3, 2, 5, generator=generator)).clamp(-1, 1)


def test_channel_errors_are_the_weighted_sums(target: torch.Tensor) -> None:
    predicted = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    for c in range(2):
        above, below = 0.0, 0.0
        for b in range(2):
            for q in range(3):
                for v in range(5):
                    true = float(target[b, q, c, v])
                    weight = 1.0 if -1 < true < 1 else 0.03
                    above += weight * (float(predicted[b, q, c, v]) - true) ** 2
                    below += weight
        error = channel_errors(predicted, target, tissue_weights(target, 0.03))[c]
        assert error.item() == pytest.approx(above / below, rel=1e-5)


def test_with_equal_weights_it_is_the_mean_squared_error_of_mae(target: torch.Tensor) -> None:
    predicted = torch.zeros_like(target)
    errors = channel_errors(predicted, target, tissue_weights(target, 1.0))
    assert weighted_mean(errors, (1.0, 1.0)).item() == pytest.approx(
        F.mse_loss(predicted, target).item(), rel=1e-5
    )


def test_channel_weights_are_a_mean() -> None:
    assert weighted_mean(torch.tensor([1.0, 2.0, 4.0]), (1, 1, 0.3)).item() == pytest.approx(
        (1 + 2 + 0.3 * 4) / 2.3
    )


def test_no_constant_patch_does_better_than_the_constant(target: torch.Tensor) -> None:
    weight = tissue_weights(target, 0.03)
    best = constant_errors(target, weight)
    mean_patch = (weight * target).sum((0, 1)) / weight.sum((0, 1))
    reached = channel_errors(mean_patch.expand_as(target), target, weight)
    torch.testing.assert_close(best, reached)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        other = torch.randn(2, 5, generator=generator).clamp(-1, 1).expand_as(target)
        assert (channel_errors(other, target, weight) >= best - 1e-6).all()


def test_latent_loss_is_smooth_l1_to_the_mean_of_normalised_blocks() -> None:
    predicted, one, two = torch.randn(3, 2, 3, 6, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for b in range(2):
        for q in range(3):
            wanted = 0.0
            for block in (one, two):
                row = block[b, q]
                wanted = wanted + (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() / 2
            for d in (predicted[b, q] - wanted).tolist():
                total += 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5
    assert latent_loss(predicted, [one, two]).item() == pytest.approx(total / 36, rel=1e-4)


def test_latent_targets_get_no_gradient() -> None:
    predicted, features = torch.randn(2, 1, 2, 4).unbind(0)
    predicted.requires_grad_()
    features.requires_grad_()
    latent_loss(predicted, [features]).backward()
    assert predicted.grad is not None
    assert features.grad is None


def test_predicted_tokens_are_masked_ones() -> None:
    masked = torch.zeros(4, 20, dtype=torch.bool)
    for row in masked:
        row[torch.randperm(20)[:10]] = True
    places = draw_masked(masked, 3)
    assert places.shape == (4, 3)
    assert masked.gather(1, places).all()
    assert (places[:, 1:] > places[:, :-1]).all()
    assert draw_masked(masked, 1).shape == (4, 1)
    torch.testing.assert_close(draw_masked(masked, 10), masked.nonzero()[:, 1].view(4, 10))


def test_every_masked_token_has_its_turn() -> None:
    masked = torch.tensor([[True, False, True, True]])
    torch.manual_seed(0)
    counts = torch.stack([draw_masked(masked, 1)[0, 0] for _ in range(300)]).bincount()
    assert counts.tolist()[1] == 0
    assert min(counts[[0, 2, 3]].tolist()) > 60


@pytest.mark.parametrize(
    ("fraction", "weight"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.25), (0.3, 0.5), (1.0, 0.5)]
)
def test_weights_rise_along_their_ramp(fraction: float, weight: float) -> None:
    assert LatConfig().weight_at(fraction) == pytest.approx(weight)
    assert MaeConfig().weight_at(fraction) == 1.0
    at_once = LatConfig(ramp=(0.2, 0.2)).weight_at(fraction)
    assert at_once == (0.5 if fraction >= 0.2 else 0.0)


@pytest.mark.parametrize("ramp", [(0.3, 0.1), (-0.1, 0.3), (0.5, 1.5)])
def test_a_ramp_that_falls_is_refused(ramp: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="start <= end"):
        check({"ramp": ramp}, LatConfig, "recipe")
