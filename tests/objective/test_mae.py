"""Masked prediction against its formulas as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from headct.config import check
from headct.errors import UsageError
from headct.objective import mae
from headct.objective.mae import (
    LatConfig,
    MaeConfig,
    WindowErrors,
    constant_errors,
    draw_masked,
    latent_loss,
    tissue_weights,
    weighted_mean,
)
from headct.volume.window import Window

WINDOWS = (
    Window(name="brain", level_hu=40.0, width_hu=80.0),
    Window(name="bone", level_hu=600.0, width_hu=2800.0),
)


@pytest.fixture
def voxels_hu() -> torch.Tensor:
    """Patches [m v], about half of the voxels outside the brain's window."""
    return 40 + 60 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def predicted() -> torch.Tensor:
    """Patches [m c v]."""
    return torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))


def target_of(voxels_hu: torch.Tensor) -> torch.Tensor:
    """Window channels [m c v]."""
    return torch.stack([window.apply(voxels_hu) for window in WINDOWS], dim=1)


def error_by_loops(
    predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, c: int
) -> float:
    above, below = 0.0, 0.0
    for m in range(len(target)):
        for v in range(target.shape[2]):
            missed = float(predicted[m, c, v]) - float(target[m, c, v])
            above += float(weight[m, c, v]) * missed**2
            below += float(weight[m, c, v])
    return above / below


@pytest.mark.parametrize("saturated", [0.03, 1.0])
@pytest.mark.parametrize("normalised", [False, True])
def test_errors_of_windows_are_the_weighted_sums(
    voxels_hu: torch.Tensor, predicted: torch.Tensor, saturated: float, normalised: bool
) -> None:
    config = MaeConfig(saturated_weight=saturated, normalised=normalised)
    errors, shares = WindowErrors.apply(predicted, voxels_hu, WINDOWS, config)
    target = target_of(voxels_hu)
    weight = torch.where((target > -1) & (target < 1), 1.0, saturated)
    if normalised:
        target = torch.stack([(t - t.mean()) / (t.var() + 1e-6).sqrt() for t in target])
    best = ((weight * target).sum(0) / weight.sum(0)).expand_as(target)
    for c in range(2):
        error = error_by_loops(predicted, target, weight, c)
        assert errors[c].item() == pytest.approx(error, rel=1e-5)
        share = error / error_by_loops(best, target, weight, c)
        assert shares[c].item() == pytest.approx(share, rel=1e-4)


def test_with_equal_weights_it_is_the_mean_squared_error_of_mae(
    voxels_hu: torch.Tensor, predicted: torch.Tensor
) -> None:
    errors, _ = WindowErrors.apply(predicted, voxels_hu, WINDOWS, MaeConfig(saturated_weight=1.0))
    assert weighted_mean(errors, (1.0, 1.0)).item() == pytest.approx(
        F.mse_loss(predicted, target_of(voxels_hu)).item(), rel=1e-5
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_gradient_of_the_errors_is_their_derivative(
    voxels_hu: torch.Tensor, predicted: torch.Tensor, normalised: bool
) -> None:
    config = MaeConfig(normalised=normalised)

    def errors(predicted: torch.Tensor) -> torch.Tensor:
        return WindowErrors.apply(predicted, voxels_hu.double(), WINDOWS, config)[0]

    assert torch.autograd.gradcheck(errors, predicted.double().requires_grad_())


def test_errors_are_the_same_in_one_piece_and_in_many(
    voxels_hu: torch.Tensor, predicted: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for values in (60, 20, 1):  # 6, 2 and 1 patches at a time
        monkeypatch.setattr(mae, "CHUNK_VALUES", values)
        leaf = predicted.double().requires_grad_()
        errors, shares = WindowErrors.apply(leaf, voxels_hu.double(), WINDOWS, MaeConfig())
        (gradient,) = torch.autograd.grad(errors.sum(), leaf)
        seen.append((errors.detach(), shares, gradient))
    assert len(mae.chunks(predicted)) == 6
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(seen[2], seen[0])


def test_bf16_predictions_get_a_gradient_of_their_own_precision(
    voxels_hu: torch.Tensor, predicted: torch.Tensor
) -> None:
    leaves = predicted.bfloat16().requires_grad_(), predicted.bfloat16().float().requires_grad_()
    losses = [WindowErrors.apply(p, voxels_hu, WINDOWS, MaeConfig())[0].sum() for p in leaves]
    reduced, full = (
        torch.autograd.grad(losses[0], leaves[0]),
        torch.autograd.grad(losses[1], leaves[1]),
    )
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(reduced[0].float(), full[0], rtol=0.01, atol=0.0)


def test_no_constant_patch_does_better_than_the_constant(voxels_hu: torch.Tensor) -> None:
    target, generator = target_of(voxels_hu), torch.Generator().manual_seed(2)
    weight = tissue_weights(target, 0.03)
    sums = [(weight * target**power).sum(0) for power in range(3)]
    best = constant_errors(*sums)
    for _ in range(20):
        other = torch.randn(2, 5, generator=generator).clamp(-1, 1).expand_as(target)
        errors, _ = WindowErrors.apply(other, voxels_hu, WINDOWS, MaeConfig())
        assert (errors >= best - 1e-6).all()


def test_channel_weights_are_a_mean() -> None:
    assert weighted_mean(torch.tensor([1.0, 2.0, 4.0]), (1, 1, 0.3)).item() == pytest.approx(
        (1 + 2 + 0.3 * 4) / 2.3
    )


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


def test_a_share_of_the_masked_is_asked_for_and_one_at_least() -> None:
    asked = [MaeConfig(predicted_fraction=share).n_asked(10) for share in (0.3, 0.01, 1.0)]
    assert asked == [3, 1, 10]


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
