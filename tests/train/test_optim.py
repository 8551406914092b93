import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from headct.model.architecture import ENCODERS
from headct.model.encoder import ViT3D
from headct.train.muon import orthogonalised
from headct.train.optim import (
    MuonAdamW,
    OptimConfig,
    cosine,
    make_optimizer,
    parameter_groups,
    set_schedule,
    teacher_momentum,
    warmup_cosine,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 4))
        self.registers = nn.Parameter(torch.zeros(1, 2, 4))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.norm = nn.LayerNorm(4)
        self.cls_head = nn.Linear(4, 3)
        self.teacher = nn.Linear(4, 3).requires_grad_(False)


def test_norms_biases_and_tokens_have_no_weight_decay():
    groups = parameter_groups(Net().named_parameters())
    decayed = {name for group in groups if group["decayed"] for name in group["names"]}
    rest = {name for group in groups if not group["decayed"] for name in group["names"]}
    assert decayed == {"cls_head.weight"}
    assert rest == {"cls", "registers", "mask_token", "norm.weight", "norm.bias", "cls_head.bias"}


def test_the_schedule_reaches_every_group_with_its_scale():
    optimizer = make_optimizer(Net(), OptimConfig(), lambda n: 10.0 if "head" in n else 1.0)
    set_schedule(optimizer, {"lr": 0.5, "weight_decay": 0.1})
    seen = {
        (g["lr_scale"], g["lr"], g["decayed"], g["weight_decay"]) for g in optimizer.param_groups
    }
    assert seen == {(1.0, 0.5, False, 0.0), (10.0, 5.0, False, 0.0), (10.0, 5.0, True, 0.1)}


def test_cosine_meets_its_ends():
    assert cosine(0, 2.0, 1.0, 11) == pytest.approx(2.0)
    assert cosine(5, 2.0, 1.0, 11) == pytest.approx(1.5)
    assert cosine(10, 2.0, 1.0, 11) == pytest.approx(1.0)
    assert cosine(99, 2.0, 1.0, 11) == pytest.approx(1.0)


def test_warm_up_is_linear_and_then_the_rate_only_falls():
    rates = [warmup_cosine(step, 1.0, 0.1, 10, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1)


def test_momentum_goes_by_the_global_step_up_to_one():
    values = [teacher_momentum(step, 1000) for step in range(1000)]
    assert values[0] == 0.95
    assert values[-1] == pytest.approx(1.0)
    assert all(a <= b for a, b in pairwise(values))
    assert teacher_momentum(0, 10**6) == 0.9995
    assert teacher_momentum(0, 5000) == pytest.approx(0.99)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_schedules_of_tiny_runs_are_finite(steps):
    schedule = OptimConfig().schedule(steps)
    for step in range(steps):
        assert all(math.isfinite(value) for value in schedule(step).values())
        assert schedule(step)["lr"] > 0


def test_the_first_momentum_can_be_given():
    values = [OptimConfig(momentum=0.996).schedule(101)(step)["momentum"] for step in (0, 50, 100)]
    assert values == pytest.approx([0.996, 0.998, 1.0])


def test_the_patch_embedding_can_learn_more_slowly():
    net = nn.ModuleDict({"student": nn.ModuleDict({"patch_embed": nn.Linear(4, 3)})})
    net["head"] = nn.Linear(3, 2)
    optimizer = make_optimizer(net, OptimConfig(patch_embed_lr=0.2))
    scales = {name: g["lr_scale"] for g in optimizer.param_groups for name in g["names"]}
    assert {name for name, scale in scales.items() if scale == 0.2} == {
        "student.patch_embed.weight",
        "student.patch_embed.bias",
    }
    assert scales["head.weight"] == 1.0


def test_learned_positions_have_no_weight_decay():
    encoder = ViT3D(ENCODERS["fmct"].model_copy(update={"width": 24, "depth": 1, "heads": 2}))
    groups = parameter_groups(encoder.named_parameters())
    decayed = {name for group in groups if group["decayed"] for name in group["names"]}
    assert "positions.table" not in decayed
    assert "patch_embed.weight" in decayed


def test_muon_takes_weight_matrices_and_adamw_the_rest():
    net = Net()
    net.prototypes = nn.Parameter(torch.randn(5, 4))
    optimizer = make_optimizer(net, OptimConfig(lr=1e-3, muon_lr=1e-2))
    names = {muon: set() for muon in (True, False)}
    for group in optimizer.param_groups:
        names[group["muon"]].update(group["names"])
    assert names[True] == {"cls_head.weight"}
    assert "prototypes" in names[False]
    set_schedule(optimizer, {"lr": 5e-4, "weight_decay": 0.1})
    rates = {group["muon"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({True: 5e-3, False: 5e-4})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_muon_and_of_adamw(monkeypatch, dtype):
    """Against the two optimizers on their own, over steps that fill their moments."""
    monkeypatch.setattr("headct.train.muon.choose_dtype", lambda *_: dtype)
    torch.manual_seed(0)
    both, apart = nn.Linear(4, 3), nn.Linear(4, 3)
    apart.load_state_dict(both.state_dict())
    config = OptimConfig(lr=1e-3, muon_lr=1e-2)
    optimizer = make_optimizer(both, config)
    muon = torch.optim.Muon([apart.weight], 1e-2, 0.1, 0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([apart.bias], 1e-3, config.betas, weight_decay=0.0)
    set_schedule(optimizer, {"lr": 1e-3, "weight_decay": 0.1})
    for _ in range(4):
        x = torch.randn(8, 4)
        for net in (both, apart):
            net.zero_grad()
            net(x).square().sum().backward()
        optimizer.step()
        muon.step()
        adamw.step()
    exact = {"rtol": 0.0, "atol": 0.0}  # torch's own orthogonalises in bfloat16
    near = {"rtol": 0.0, "atol": 4 * 1e-2 * 0.2 * 0.1}  # a tenth of the size of four steps
    torch.testing.assert_close(
        both.weight, apart.weight, **(exact if dtype == torch.bfloat16 else near)
    )
    torch.testing.assert_close(both.bias, apart.bias)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_an_update_is_near_an_orthogonal_matrix(shape):
    u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    singular = torch.linspace(0.05, 1.0, len(vt))
    update = orthogonalised(1e-4 * u @ singular.diag() @ vt, torch.float32)
    inner = u.mT @ update @ vt.mT
    assert inner.diag().min() > 0.6
    assert inner.diag().max() < 1.25
    assert (inner - inner.diag().diag()).abs().max() < 1e-3


def test_muon_goes_on_from_its_saved_state():
    torch.manual_seed(0)
    config = OptimConfig(muon_lr=1e-2)
    xs = torch.randn(6, 8, 4)

    def trained(net, optimizer, batches):
        for x in batches:
            net.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()

    net = nn.Linear(4, 3)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = make_optimizer(net, config)
    assert isinstance(optimizer, MuonAdamW)
    trained(net, optimizer, xs)
    other = nn.Linear(4, 3)
    other.load_state_dict(start)
    first = make_optimizer(other, config)
    trained(other, first, xs[:3])
    second = make_optimizer(other, config)
    second.load_state_dict(first.state_dict())
    trained(other, second, xs[3:])
    torch.testing.assert_close(other.weight, net.weight, rtol=0, atol=0)
