"""Self-distillation against its formulas as loops, and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from headct.objective.agreement import (
    centred_targets,
    coding_rate,
    koleo,
    sinkhorn_targets,
    view_cross_entropy,
    view_distance,
)
from headct.objective.dino import Centring, CodingRate, Sinkhorn, self_distillation
from headct.objective.dino_config import (
    CentringConfig,
    ClsConfig,
    CodingRateConfig,
    SinkhornConfig,
)

SMALL = {"hidden": 16, "out": 8}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sinkhorn_config(**changes: float) -> ClsConfig:
    values = {"n_prototypes": 6, "n_queue": 10} | changes
    return ClsConfig(objective="sinkhorn", sinkhorn=SinkhornConfig.model_validate(values), **SMALL)


def test_distance_is_the_mean_over_pairs_of_different_views() -> None:
    student, teacher = unit(5, 3, 8), unit(2, 3, 8, seed=1)
    distances = [
        1 - float(student[i, b] @ teacher[j, b])
        for i in range(5)
        for j in range(2)
        if i != j
        for b in range(3)
    ]
    expected = sum(distances) / len(distances)
    assert view_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_is_dinos() -> None:
    """Caron et al. 2021, equations 1 and 3."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, generator=generator)
    targets = torch.randn(2, 3, 6, generator=generator).softmax(-1)
    terms = []
    for j in range(2):
        for i in range(4):
            if i == j:
                continue
            for b in range(3):
                p = logits[i, b].exp() / logits[i, b].exp().sum()
                terms.append(-sum(float(targets[j, b, k] * p[k].log()) for k in range(6)))
    assert len(terms) == 18
    expected = sum(terms) / len(terms)
    assert view_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4), (1, 3)])
def test_coding_rate_is_the_formula(n: int, d: int) -> None:
    z = unit(n, d).double()
    matrix = torch.eye(d, dtype=torch.float64) + d / (n * 0.5**2) * z.T @ z
    expected = 0.5 * math.log(float(torch.linalg.det(matrix)))
    assert coding_rate(z, 0.5).item() == pytest.approx(expected, rel=1e-9)


def test_coding_rate_of_known_batches() -> None:
    n, d, eps = 4, 8, 0.5
    same = F.one_hot(torch.zeros(n, dtype=torch.long), d).double()
    apart = F.one_hot(torch.arange(n), d).double()
    assert coding_rate(same, eps).item() == pytest.approx(0.5 * math.log(1 + d / eps**2))
    assert coding_rate(apart, eps).item() == pytest.approx(0.5 * n * math.log(1 + d / (n * eps**2)))


def test_sinkhorn_evens_out_rows_and_columns() -> None:
    logits = unit(12, 5) @ unit(4, 5, seed=1).T
    q = sinkhorn_targets(logits, 0.3, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0), rtol=1e-3, atol=1e-3)
    few = sinkhorn_targets(logits, 0.05, 3)
    torch.testing.assert_close(few.sum(1), torch.ones(12))
    uneven = (logits / 0.05).softmax(1).sum(0)
    assert (few.sum(0) - 3).abs().max() < (uneven - 3).abs().max()


def test_sinkhorn_is_the_published_iteration() -> None:
    logits = unit(5, 3) @ unit(4, 3, seed=1).T
    q = (logits / 0.1).exp().T.double()  # [k n], as in the paper's listing
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 5
    expected = (q * 5).T.float()
    torch.testing.assert_close(sinkhorn_targets(logits, 0.1, 3), expected, rtol=1e-4, atol=1e-6)


def test_sinkhorn_does_not_overflow_at_low_temperature() -> None:
    q = sinkhorn_targets(unit(6, 3) @ unit(4, 3, seed=1).T, 0.03, 3)
    assert torch.isfinite(q).all()


def test_centred_targets_are_dinos() -> None:
    """Caron et al. 2021, algorithm 1: softmax((t - C) / tpt)."""
    logits = unit(3, 5) @ unit(4, 5, seed=1).T
    centre = torch.tensor([0.1, -0.2, 0.0, 0.3])
    targets = centred_targets(logits, centre, 0.04)
    for n in range(3):
        powers = [math.exp(float(logits[n, k] - centre[k]) / 0.04) for k in range(4)]
        for k in range(4):
            assert targets[n, k].item() == pytest.approx(powers[k] / sum(powers), rel=1e-4)


def test_centring_is_the_published_algorithm() -> None:
    """Three steps of Caron et al. 2021, algorithm 1, written out beside the module."""
    torch.manual_seed(0)
    config = {"n_prototypes": 6, "frozen_fraction": 0.0, "centre_momentum": 0.9}
    term = Centring(12, ClsConfig(objective="centring", centring=CentringConfig(**config), **SMALL))
    centre = torch.zeros(6)
    for step in range(3):
        views, teacher = torch.randn(4, 5, 12), torch.randn(2, 5, 12)
        temperature = 0.04 + 0.03 * min(step / 3 / 0.3, 1)
        loss, _ = term(views, teacher, step / 3)
        with torch.no_grad():
            t = [term.teacher.logits(term.teacher(view)) for view in teacher]
            s = [term.student.logits(term.student(view)) for view in views]
            total, n_terms = 0.0, 0
            for j in range(2):
                target = ((t[j] - centre) / temperature).softmax(-1)
                for i in range(4):
                    if i == j:
                        continue
                    total += -(target * (s[i] / 0.1).log_softmax(-1)).sum(-1).mean()
                    n_terms += 1
            centre = 0.9 * centre + 0.1 * torch.cat(t).mean(0)
        torch.testing.assert_close(loss.detach(), total / n_terms)
        term.after_step()
        torch.testing.assert_close(term.centre, centre)


def test_the_centre_stays_where_a_step_is_not_applied_or_only_looked_at() -> None:
    config = CentringConfig(n_prototypes=6)
    term = Centring(12, ClsConfig(objective="centring", centring=config, **SMALL)).eval()
    term(torch.randn(4, 5, 12), torch.randn(2, 5, 12), 0.5)
    term.after_step()
    assert not term.centre.any()


def test_koleo_is_the_log_of_the_nearest_distance() -> None:
    cls = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z = F.normalize(cls.detach(), dim=-1)
    nearest = [min(float((z[i] - z[j]).norm()) for j in range(6) if j != i) for i in range(6)]
    expected = -sum(math.log(d) for d in nearest) / 6
    loss = koleo(cls)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert torch.isfinite(cls.grad).all()


def test_gamma_is_steered_by_the_distance_between_views() -> None:
    config = ClsConfig(coding_rate=CodingRateConfig(gamma=0.01, steer=0.1), **SMALL)
    term = CodingRate(12, config)
    for distance, factor in ((0.01, 1.1), (0.1, 1.0), (0.6, 0.9)):
        term.gamma.fill_(0.01)
        term.distance = torch.tensor(distance)
        term.after_step()
        assert term.gamma.item() == pytest.approx(0.01 * factor)


def test_coding_rate_term_is_distance_minus_gamma_times_rate() -> None:
    torch.manual_seed(0)
    term = CodingRate(12, ClsConfig(**SMALL))
    views, teacher = torch.randn(4, 5, 12), torch.randn(2, 5, 12)
    loss, seen = term(views, teacher, 0.5)
    z = term.student(views)
    rate = (coding_rate(z[0], 0.5) + coding_rate(z[1], 0.5)) / 2
    expected = view_distance(z, term.teacher(teacher)) - 0.005 * rate
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(seen["coding_rate"], rate)


def test_gradient_reaches_the_student_head_only() -> None:
    for objective in ("coding-rate", "sinkhorn", "centring"):
        term = self_distillation(12, ClsConfig(objective=objective, **SMALL))
        teacher = torch.randn(2, 5, 12, requires_grad=True)
        loss, _ = term(torch.randn(4, 5, 12), teacher, 0.5)
        loss.backward()
        assert teacher.grad is None
        assert all(p.grad is None for p in term.teacher.parameters())
        assert all(p.grad is not None for p in term.student.parameters())


def test_prototypes_are_frozen_at_the_start() -> None:
    term = Sinkhorn(12, sinkhorn_config())
    views, teacher = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    term(views, teacher, 0.01)[0].backward()
    assert term.student.prototypes.grad is None
    term(views, teacher, 0.03)[0].backward()
    assert term.student.prototypes.grad is not None


def test_teacher_temperature_rises_over_the_run() -> None:
    term = Sinkhorn(12, sinkhorn_config())
    at = [term.temperature(fraction) for fraction in (0.0, 0.15, 0.3, 1.0)]
    assert at == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_queue_holds_the_latest_teacher_vectors_and_takes_part() -> None:
    torch.manual_seed(0)
    term = Sinkhorn(12, sinkhorn_config())
    one, two = torch.randn(2, 2, 3, 12)
    alone = term.targets(two, 0.5)
    term.eval()
    assert torch.equal(term.targets(two, 0.5), alone)
    term.train()
    term._waiting.clear()
    for batch in (one, two):
        term.targets(batch, 0.5)
        term.after_step()
    assert int(term.n_queued) == 10
    expected = torch.cat([term.teacher(two).flatten(0, 1), term.teacher(one).flatten(0, 1)])
    torch.testing.assert_close(term.queue, expected[:10])
    assert not torch.equal(term.targets(two, 0.5), alone)


def test_empty_rows_of_the_queue_do_not_count() -> None:
    torch.manual_seed(0)
    term = Sinkhorn(12, sinkhorn_config())
    one, two = torch.randn(2, 2, 2, 12)
    term.targets(one, 0.5)
    term.after_step()
    assert int(term.n_queued) == 4
    known = torch.cat([term.teacher(vectors).flatten(0, 1) for vectors in (two, one)])
    expected = sinkhorn_targets(term.teacher.logits(known), term.temperature(0.5), 3)[:4]
    torch.testing.assert_close(term.targets(two, 0.5).flatten(0, 1), expected)


def test_the_coding_rate_of_what_is_not_finite_is_left_to_the_loop() -> None:
    assert coding_rate(torch.full((4, 3), math.nan), 0.5).isnan()


def test_koleo_needs_sixteen_scans() -> None:
    term = Sinkhorn(12, sinkhorn_config())
    for n_scans, there in ((15, False), (16, True)):
        _, seen = term(torch.randn(2, n_scans, 12), torch.randn(2, n_scans, 12), 0.5)
        assert ("koleo_loss" in seen) is there
