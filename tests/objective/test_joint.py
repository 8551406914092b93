"""The joint objective: who sees what, who gets a gradient, what is left out."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from headct.config import check
from headct.errors import UsageError
from headct.model.architecture import ENCODERS
from headct.model.tokens import gather_patches, to_channels, window_tensors
from headct.objective.config import DecoderConfig, JointConfig
from headct.objective.dino_config import ClsConfig
from headct.objective.joint import JointObjective, follow
from headct.objective.mae import (
    LatConfig,
    MaeConfig,
    weighted_mean,
)
from headct.views.batch import ViewBatch

TINY = ENCODERS["demo"].model_copy(update={"width": 48, "depth": 2, "heads": 3})
DECODER = DecoderConfig(width=32, depth=1, heads=2)
HEAD = {"hidden": 16, "out": 8, "ramp": (0.0, 0.0)}
OFF = {"mae": MaeConfig(weight=0), "lat": LatConfig(weight=0), "cls": ClsConfig(weight=0)}
JOINT = JointConfig(decoder=DECODER, lat=LatConfig(ramp=(0.0, 0.0)), cls=ClsConfig(**HEAD))


def only(**terms: Any) -> JointConfig:
    return JointConfig(decoder=DECODER, **(OFF | terms))


def made(config: JointConfig, seed: int = 0) -> JointObjective:
    torch.manual_seed(seed)
    return JointObjective(config, TINY)


def views(n_scans: int = 3, n_local: int = 2, n_masked: int = 6, seed: int = 0) -> ViewBatch:
    """Two globals of 2 x 3 x 2 patches a scan, 10 of the 12 kept, and locals of one patch."""
    generator = torch.Generator().manual_seed(seed)
    rows = n_scans * 2
    draw = torch.rand(rows, 12, generator=generator)
    keep = draw.argsort(1)[:, :10].sort(1).values
    masked = torch.zeros(rows, 10, dtype=torch.bool)
    hide = torch.rand(rows, 10, generator=generator).argsort(1)[:, :n_masked]
    masked.scatter_(1, hide, True)
    return ViewBatch(
        globals_hu=40 + 40 * torch.randn(n_scans, 2, 16, 24, 16, generator=generator),
        locals_hu=40 + 40 * torch.randn(n_scans, n_local, 8, 8, 8, generator=generator),
        keep=keep.view(n_scans, 2, 10),
        masked=masked.view(n_scans, 2, 10),
        n_masked=n_masked,
        flipped=torch.zeros(n_scans, 2, dtype=torch.bool),
        spacing_mm_zyx=(3.3, 3.3, 3.3),
    )


def test_loss_is_the_weighted_sum_of_the_terms() -> None:
    config = JOINT.model_copy(update={"lat": LatConfig(weight=0.5, ramp=(0.0, 0.4))})
    out = made(config).losses(views(), 0.1)
    expected = out["mae_loss"] + 0.5 * 0.25 * out["lat_loss"] + 1.0 * out["cls_loss"]
    torch.testing.assert_close(out["loss"].detach(), expected)
    assert out["loss"].requires_grad
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    assert all(value.ndim == 0 and torch.isfinite(value) for value in out.values())


def test_masked_patches_never_reach_the_student() -> None:
    objective = made(JOINT).eval()
    batch = views()
    seen: list[torch.Tensor] = []
    objective.student.patch_embed.register_forward_hook(lambda _m, _i, out: seen.append(out))
    torch.manual_seed(5)
    objective.losses(batch, 0.5)
    before, seen[:] = seen[0], []
    blank = batch.globals_hu.flatten(0, 1).clone()
    for row, (keep, masked) in enumerate(
        zip(batch.keep.flatten(0, 1), batch.masked.flatten(0, 1), strict=True)
    ):
        for number in keep[masked].tolist():
            z, y, x = 8 * (number // 6), 8 * (number // 2 % 3), 8 * (number % 2)
            blank[row, z : z + 8, y : y + 8, x : x + 8] = 3000
    batch.globals_hu.copy_(blank.view_as(batch.globals_hu))
    torch.manual_seed(5)
    objective.losses(batch, 0.5)
    assert before.shape[:2] == (6, 4)
    assert torch.equal(seen[0], before)


def decoded(objective: JointObjective, batch: ViewBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Voxels that the decoder predicts of the 6 hidden and 4 visible patches, and their numbers."""
    hu = batch.globals_hu.flatten(0, 1)
    keep, masked = batch.keep.flatten(0, 1), batch.masked.flatten(0, 1)
    hidden_at, visible_at = keep[masked].view(6, 6), keep[~masked].view(6, 4)
    tokens = objective.student.forward_hu(hu, (3.3,) * 3, visible_at)
    asked_mm = objective.student.centres_mm(hidden_at, hu.shape[1:], (3.3,) * 3)
    predicted = objective.decoder.to_voxels(torch.cat(objective.decoder(tokens, asked_mm), dim=1))
    return predicted, torch.cat([hidden_at, visible_at], dim=1)


def errors_of(predicted: torch.Tensor, hu: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Weighted error of each window of predicted patches of HU views [b g z y x]."""
    voxels = gather_patches(hu.flatten(0, 1), (8, 8, 8), at)
    target = to_channels(voxels, *window_tensors(TINY.windows, "cpu"))
    weight = torch.where(target.abs() < 1.0, 1.0, 0.03)
    squares = weight * (predicted.view_as(target) - target) ** 2
    return (squares.sum(dim=(0, 1, 3)) / weight.sum(dim=(0, 1, 3))).detach()


def test_mae_term_is_the_error_of_the_decoders_patches() -> None:
    objective = made(only(mae=MaeConfig(predicted_fraction=1.0))).eval()
    batch = views()
    out = objective.losses(batch, 0.5)
    predicted, at = decoded(objective, batch)
    errors = errors_of(predicted[:, :6], batch.globals_hu, at[:, :6])
    torch.testing.assert_close(out["mae_loss"], weighted_mean(errors, (1, 1, 0.3)))
    for c, name in enumerate(("brain", "blood", "bone")):
        torch.testing.assert_close(out[f"{name}_error"], errors[c])
        assert out[f"{name}_error_share"] > 0


def test_visible_patches_are_decoded_from_their_own_tokens() -> None:
    mae = MaeConfig(predicted_fraction=1.0, visible_fraction=1.0)
    objective = made(only(mae=mae)).eval()
    batch = views()
    predicted, at = decoded(objective, batch)
    errors = errors_of(predicted, batch.globals_hu, at)
    loss = objective.losses(batch, 0.5)["mae_loss"]
    torch.testing.assert_close(loss, weighted_mean(errors, (1, 1, 0.3)))


def test_pixels_are_asked_for_as_they_were_before_augmentation() -> None:
    objective = made(only(mae=MaeConfig(predicted_fraction=1.0))).eval()
    batch = views()
    clean = torch.full_like(batch.globals_hu, 40.0)
    predicted, at = decoded(objective, batch)
    errors = errors_of(predicted[:, :6], clean, at[:, :6])
    loss = objective.losses(replace(batch, clean_hu=clean), 0.5)["mae_loss"]
    torch.testing.assert_close(loss, weighted_mean(errors, (1, 1, 0.3)))
    assert loss != objective.losses(batch, 0.5)["mae_loss"]


def test_latent_targets_are_the_teachers_features_of_the_predicted_patches() -> None:
    """With the whole set predicted, the loss follows from the teacher's last block alone."""
    lat = LatConfig(ramp=(0.0, 0.0))
    config = only(lat=lat, mae=MaeConfig(weight=0, predicted_fraction=1.0))
    objective = made(config).eval()
    torch.nn.init.zeros_(objective.decoder.to_features.weight)
    batch = views()
    out = objective.losses(batch, 0.5)
    keep, masked = batch.keep.flatten(0, 1), batch.masked.flatten(0, 1)
    hu = batch.globals_hu.flatten(0, 1)
    block = objective.teacher.forward_hu(hu, (3.3,) * 3, keep, n_blocks=1).blocks[0]
    features = torch.nn.functional.layer_norm(block[masked], (48,))
    expected = torch.nn.functional.smooth_l1_loss(torch.zeros_like(features), features)
    torch.testing.assert_close(out["lat_loss"], expected.detach())


def test_teacher_gets_no_gradient_and_the_student_does() -> None:
    for objective in ("coding-rate", "sinkhorn"):
        joint = made(JOINT.model_copy(update={"cls": ClsConfig(objective=objective, **HEAD)}))
        joint.train().losses(views(), 0.5)["loss"].backward()
        for name, parameter in joint.named_parameters():
            frozen = name.startswith(("teacher.", "distillation.teacher."))
            assert parameter.requires_grad is not frozen, name
            assert (parameter.grad is None) is frozen, name


def test_teacher_starts_as_a_copy_and_follows() -> None:
    joint = made(JOINT)
    for mine, theirs in zip(joint.teacher.parameters(), joint.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before = copy.deepcopy(joint.teacher.state_dict())
    with torch.no_grad():
        for parameter in joint.student.parameters():
            parameter.add_(1.0)
    joint.after_step(0.9)
    for name, weight in joint.teacher.state_dict().items():
        torch.testing.assert_close(weight, before[name] + 0.1, atol=1e-6, rtol=1e-5)


def test_follow_is_the_moving_average() -> None:
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = 0.75 * teacher.weight.detach() + 0.25 * student.weight.detach()
    follow(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight.detach(), expected)


def test_teacher_stays_in_evaluation_mode() -> None:
    joint = made(JOINT).train()
    assert joint.training
    assert joint.student.training
    assert not joint.teacher.training


def test_a_term_at_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = (0.4, 0.8)
    config = JOINT.model_copy(
        update={"lat": LatConfig(ramp=ramp), "cls": ClsConfig(**(HEAD | {"ramp": ramp}))}
    )
    joint = made(config)
    monkeypatch.setattr(
        joint.teacher, "forward_hu", lambda *_a, **_k: pytest.fail("the teacher was run")
    )
    out = joint.losses(views(), 0.4)
    assert "mae_loss" in out
    assert out.keys().isdisjoint({"lat_loss", "cls_loss", "view_distance"})


def test_what_is_off_is_not_built() -> None:
    mae = made(only(mae=MaeConfig()))
    assert mae.teacher is None
    assert mae.distillation is None
    assert mae.bundle_encoder() is mae.student
    dino = made(only(cls=ClsConfig(**HEAD)))
    assert dino.decoder is None
    assert dino.bundle_encoder() is dino.teacher
    out = dino.losses(views(n_masked=0), 0.5)
    torch.testing.assert_close(out["loss"].detach(), out["cls_loss"])


def test_self_distillation_works_without_local_views() -> None:
    out = made(only(cls=ClsConfig(**HEAD))).losses(views(n_local=0), 0.5)
    assert torch.isfinite(out["loss"])


def test_the_same_seed_gives_the_same_step() -> None:
    joint, batch = made(JOINT).train(), views()
    torch.manual_seed(3)
    one = joint.losses(batch, 0.5)
    torch.manual_seed(3)
    two = joint.losses(batch, 0.5)
    torch.manual_seed(4)
    other = joint.losses(batch, 0.5)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["loss"] != other["loss"]


@pytest.mark.parametrize("objective", ["coding-rate", "sinkhorn"])
def test_state_goes_on_where_it_was_saved(objective: str) -> None:
    config = JOINT.model_copy(update={"cls": ClsConfig(objective=objective, **HEAD)})
    joint = made(config).train()
    for seed in range(2):
        joint.losses(views(seed=seed), 0.5)
        joint.after_step(0.9)
    other = made(config, seed=9).train()
    other.load_state_dict(joint.state_dict())
    for one in (joint, other):
        torch.manual_seed(1)
        one.out = one.losses(views(seed=5), 0.5)
    assert all(torch.equal(joint.out[name], other.out[name]) for name in joint.out)


def test_bf16_gives_nearly_the_same_losses_in_float32() -> None:
    joint = made(JOINT).eval()
    batch = views()
    torch.manual_seed(0)
    full = joint.losses(batch, 0.5)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = joint.losses(batch, 0.5)
    for name in ("mae_loss", "lat_loss", "cls_loss"):
        assert reduced[name].dtype == torch.float32
        torch.testing.assert_close(reduced[name], full[name], rtol=0.03, atol=0.01)


def test_a_few_steps_learn() -> None:
    joint = made(JOINT).train()
    optimizer = torch.optim.AdamW([p for p in joint.parameters() if p.requires_grad], 2e-3)
    batch = views()
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        out = joint.losses(batch, 0.5)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        joint.after_step(0.95)
        losses.append(out["mae_loss"].item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_masked_terms_need_masked_patches() -> None:
    with pytest.raises(UsageError, match="mask none"):
        made(JOINT).losses(views(n_masked=0), 0.5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mae": {"weight": 0}, "lat": {"weight": 0}, "cls": {"weight": 0}}, "nothing to learn"),
        ({"mae": {"weight": 0}, "lat": {"ramp": [0, 0.2]}}, "first step"),
        ({"decoder": {"width": 100, "heads": 3}}, "does not give 3 even heads"),
        ({"cls": {"objective": "dino"}}, "coding-rate"),
        ({"cls": {"prototypes": 3}}, "unknown key"),
    ],
)
def test_contradicting_configs_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(values, JointConfig, "recipe")


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.0, 0.0)])
def test_channel_weights_must_fit_the_windows(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="channel_weights"):
        made(only(mae=MaeConfig(channel_weights=weights)))
