"""Gram anchoring against its formula as loops, and when the anchor stays behind."""

from __future__ import annotations

import pytest
import torch

from headct.config import check
from headct.errors import UsageError
from headct.objective.config import JointConfig
from headct.objective.gram import GramConfig, gram_loss
from headct.objective.joint import JointObjective
from headct.objective.mae import LatConfig, MaeConfig

from .test_joint import DECODER, OFF, TINY, made, only, views

GRAM = GramConfig(weight=2.0, ramp=(0.6, 0.6), anchor_fraction=0.2)


def test_gram_loss_is_the_mean_over_pairs_of_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 5, generator=generator)
    anchor = torch.randn(2, 3, 4, generator=generator)
    terms = []
    for n in range(2):
        for i in range(3):
            for j in range(3):
                cosines = [
                    float(x[n, i] @ x[n, j] / (x[n, i].norm() * x[n, j].norm()))
                    for x in (student, anchor)
                ]
                terms.append((cosines[0] - cosines[1]) ** 2)
    expected = sum(terms) / len(terms)
    assert gram_loss(student, anchor).item() == pytest.approx(expected, rel=1e-4)


def test_only_likeness_counts() -> None:
    """Turned and stretched features have the same cosines."""
    features = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    assert gram_loss(3 * features @ turn, features).item() == pytest.approx(0, abs=1e-10)


def test_the_anchor_gets_no_gradient() -> None:
    student, anchor = torch.randn(2, 1, 4, 3).requires_grad_().unbind(0)
    anchor = anchor.detach().requires_grad_()
    gram_loss(student, anchor).backward()
    assert anchor.grad is None


def test_the_anchor_is_the_teacher_of_its_share_of_the_run() -> None:
    objective = made(only(mae=MaeConfig(), gram=GRAM))
    batch = views()

    def step(fraction: float) -> None:
        objective.losses(batch, fraction)
        with torch.no_grad():
            for weight in objective.student.parameters():
                weight += 0.1
        objective.after_step(0.5)

    step(0.1)
    follows = objective.anchor.encoder.state_dict()
    assert all(torch.equal(follows[k], v) for k, v in objective.teacher.state_dict().items())
    early = {k: v.clone() for k, v in follows.items()}
    step(0.2)
    step(0.7)
    stays = objective.anchor.encoder.state_dict()
    assert all(torch.equal(stays[k], v) for k, v in early.items())
    assert not torch.equal(objective.teacher.cls, stays["cls"])


def test_the_term_compares_the_patches_that_the_student_sees() -> None:
    objective = made(only(mae=MaeConfig(), gram=GRAM)).eval()
    batch = views()
    assert "gram_loss" not in objective.losses(batch, 0.5)
    with torch.no_grad():
        for weight in objective.student.parameters():
            weight += 0.05 * torch.randn_like(weight)
    out = objective.losses(batch, 0.7)
    hu, keep = batch.globals_hu.flatten(0, 1), batch.keep.flatten(0, 1)
    masked = batch.masked.flatten(0, 1)
    with torch.no_grad():
        student = objective.student.forward_hu(hu, keep=keep[~masked].view(6, 4)).patches
        whole = objective.anchor.encoder.forward_hu(hu, keep=keep).patches
    rows = [gram_loss(student[n : n + 1], whole[n : n + 1][:, ~masked[n]]) for n in range(len(hu))]
    torch.testing.assert_close(out["gram_loss"], torch.stack(rows).mean())
    torch.testing.assert_close(out["loss"], out["mae_loss"] + 2.0 * out["gram_loss"])


def test_it_is_off_unless_asked_for() -> None:
    objective = JointObjective(JointConfig(decoder=DECODER), TINY)
    assert objective.anchor is None
    alone = JointObjective(
        JointConfig(decoder=DECODER, **OFF | {"lat": LatConfig(ramp=(0, 0))}), TINY
    )
    assert not [name for name in alone.state_dict() if name.startswith("anchor")]


def test_it_is_never_used_before_there_is_an_anchor() -> None:
    with pytest.raises(UsageError, match="before there is an anchor"):
        check({"weight": 1, "ramp": (0.1, 0.2)}, GramConfig, "recipe")
