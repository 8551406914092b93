"""Counted operations and estimated memory against what torch counts and keeps."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headct.errors import TrainingError
from headct.objective.joint import JointObjective
from headct.train.cost import shape_of, step_flops, terms_at
from headct.train.feed import view_maker
from headct.train.memory import GIB, estimate_memory, require_memory
from headct.train.optim import make_optimizer
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import PRESETS

from .tiny import GRID, RECIPE, recipe

WIDE = RECIPE["encoder"] | {"width": 96, "n_tokens": 64, "drop_path": 0.0}
DECODER = {"width": 48, "heads": 2, "depth": 2}
FULL = {"weight": 1.0, "ramp": [0.0, 0.0]}
SINKHORN = {
    "objective": "sinkhorn",
    "hidden": 64,
    "out": 32,
    "sinkhorn": {"n_prototypes": 128, "n_queue": 0, "frozen_fraction": 0.0},
}
OBJECTIVES = {
    "mae": {"mae": {"visible_fraction": 0.5}, "lat": {"weight": 0}, "cls": {"weight": 0}},
    "lat": {"mae": {"weight": 0}, "lat": FULL, "cls": {"weight": 0}},
    "joint": {"lat": FULL, "cls": FULL | {"hidden": 64, "out": 32}},
    "gram": {"lat": {"weight": 0}, "cls": {"weight": 0}, "gram": {"weight": 1.0}},
    "sinkhorn": {"lat": FULL, "cls": FULL | SINKHORN},
}


def case(name, **changes) -> PretrainRecipe:
    objective = OBJECTIVES[name] | {"decoder": DECODER}
    return recipe(encoder=WIDE, objective=objective, batch=4, **changes)


def parts(of: PretrainRecipe):
    maker = view_maker(of, SimpleNamespace(preprocessing=GRID))
    generator = torch.Generator().manual_seed(0)
    hu = torch.randint(-50, 100, (of.batch, *GRID.shape_zyx), generator=generator).to(torch.int16)
    views = maker.make(hu, [(0, i) for i in range(of.batch)], 0)
    torch.manual_seed(0)
    return maker, views, JointObjective(of.objective, of.encoder).train()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_operations_are_those_that_torch_counts(name):
    of = case(name)
    _, views, objective = parts(of)
    # its counter knows no fused attention on a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(views, 0.9)["loss"].backward()
    shape = shape_of(views, of.encoder, terms_at(of.objective, 0.9))
    counted = step_flops(shape, of.objective, of.encoder)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_estimated_activations_are_near_what_is_kept_for_the_backward_pass(name):
    of = case(name, views=RECIPE["views"] | {"mask": {"ratio": [0.6, 0.6]}})
    maker, views, objective = parts(of)
    own = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(views, 0.9)["loss"]
    estimate = estimate_memory(of, maker, dtype=torch.float32).activations
    assert loss.requires_grad
    assert 0.7 < sum(kept.values()) / estimate < 1.2


def presets(name):
    from headct.config import load_recipe

    of = load_recipe(name, PretrainRecipe)
    return of, view_maker(of, SimpleNamespace(preprocessing=PRESETS[name]))


@pytest.mark.parametrize("name", ["demo", "small"])  # with Muon and without
def test_the_state_is_weights_gradients_and_moments(name):
    of, maker = presets(name)
    objective = JointObjective(of.objective, of.encoder)
    optimizer = make_optimizer(objective, of.optim)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [*objective.parameters(), *objective.buffers()]
    tensors += [p.grad for p in objective.parameters() if p.grad is not None]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    state = estimate_memory(of, maker, dtype=torch.float32).state
    assert state == pytest.approx(sum(t.nbytes for t in tensors), rel=0.01)


def test_sharding_splitting_and_recomputing_need_less():
    of, maker = presets("base")
    plain = estimate_memory(of, maker, 8)
    assert estimate_memory(of.model_copy(update={"accumulate": 2}), maker, 8).activations < (
        0.6 * plain.activations
    )
    change = {"activation_checkpointing": True, "strategy": "fsdp"}
    compute = of.compute.model_copy(update=change)
    spared = estimate_memory(of.model_copy(update={"compute": compute}), maker, 8)
    assert spared.activations < 0.5 * plain.activations
    assert spared.state < 0.5 * plain.state


def test_a_gpu_too_small_is_told_what_fits():
    of, maker = presets("base")
    with pytest.raises(
        TrainingError, match=r"needs about [\d.]+ GiB .* 80\.0 GiB are free"
    ) as told:
        require_memory(of, maker, 80 * GIB)
    sets = [part.split("=") for part in told.value.remedy.split() if "=" in part]
    assert dict(sets)["accumulate"].isdigit()
    changed = of.model_copy(update={"accumulate": int(dict(sets)["accumulate"])})
    assert require_memory(changed, maker, 80 * GIB).total < 80 * GIB
    with pytest.raises(TrainingError) as told:
        require_memory(of, maker, 2 * GIB)
    assert "a smaller encoder" in told.value.remedy
