"""Counted operations and estimated memory against what torch counts and keeps."""

import re
import shlex
from importlib import resources
from itertools import pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headct.config import builtin_names, load_recipe
from headct.errors import TrainingError
from headct.objective.joint import JointObjective
from headct.train.cost import shape_of, step_flops, terms_at
from headct.train.feed import view_maker
from headct.train.fitting import out_of_memory, require_memory
from headct.train.memory import GIB, estimate_memory
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


def test_a_remedy_for_memory_keeps_two_scans_for_the_coding_rate():
    of, maker = presets("small")
    of = of.model_copy(update={"batch": 4})
    seen = []
    for gib in range(1, 12):
        try:
            require_memory(of, maker, gib * GIB)
        except TrainingError as told:
            seen += re.findall(r"accumulate=(\d+)", told.remedy)
    assert set(seen) == {"2"}
    assert "accumulate=2," in out_of_memory(of, 3).remedy
    remedy = out_of_memory(of.model_copy(update={"accumulate": 2}), 3).remedy
    assert remedy == "--set compute.activation_checkpointing=true"


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


def told_for(recipe, grid, gib, n_ranks=1):
    maker = view_maker(recipe, SimpleNamespace(preprocessing=PRESETS[grid]))
    with pytest.raises(TrainingError) as told:
        require_memory(recipe, maker, gib * GIB, n_ranks)
    return told.value.remedy


@pytest.mark.parametrize(
    ("name", "grid", "gib", "n_ranks", "part"),
    [
        ("base", "base", 4, 1, "width=384"),
        ("large", "base", 2, 1, "width=192"),
        ("large", "base", 10, 8, "fsdp"),
        ("fmct-dino", "fmct-hu", 2, 1, "width=192"),
    ],
)
def test_what_a_small_gpu_is_told_is_a_recipe_that_fits_it(name, grid, gib, n_ranks, part):
    remedy = told_for(load_recipe(name, PretrainRecipe), grid, gib, n_ranks)
    words = shlex.split(remedy)
    sets = [after for word, after in pairwise(words) if word == "--set"]
    assert part in " ".join(sets)
    changed = load_recipe(name, PretrainRecipe, sets)
    maker = view_maker(changed, SimpleNamespace(preprocessing=PRESETS[grid]))
    needed = require_memory(changed, maker, gib * GIB, n_ranks).total
    assert f"{needed / GIB:.1f} GiB" in remedy


def test_where_nothing_fits_it_is_said():
    assert "not even one scan" in told_for(load_recipe("base", PretrainRecipe), "base", 1)


HEADERS = Path(str(resources.files("headct.recipes")))
CARD = 78 * GIB
"""What is free on a GPU of 80 GB."""


@pytest.mark.parametrize("name", builtin_names())
def test_every_recipe_fits_gpus_of_80_gb_with_the_command_in_its_header(name):
    """With as many processes as it names; where the header says how much, it is the estimate."""
    lines = (HEADERS / f"{name}.toml").read_text().splitlines()
    header = " ".join(line[1:] for line in takewhile(lambda line: line.startswith("#"), lines))
    start = re.search(rf"(torchrun [^#]*)?headct pretrain {name} --store (\S+)", header)
    ranks = re.search(r"--nproc-per-node (\d+)", start[1] or "")
    n_ranks = int(ranks[1]) if ranks else 1
    grid = "demo" if start[2] == "archive/pool" else re.search(r"--grid ([\w-]+)", header)[1]
    of = load_recipe(name, PretrainRecipe)
    maker = view_maker(of, SimpleNamespace(preprocessing=PRESETS[grid]))
    needed = require_memory(of, maker, CARD, n_ranks).total
    if said := re.search(r"by the estimate ([^:]*) GiB", header):
        assert f"{needed / GIB:.0f}" in said[1].split()


def test_commands_of_the_docs_on_several_gpus_fit_gpus_of_80_gb():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "pretrain.md").read_text()
    torchrun = r"--nproc-per-node (\d+) --no-python headct pretrain (\w+)"
    commands = [(int(n), name) for n, name in re.findall(torchrun, page)]
    slurm = r"headct pretrain (\w+) .*--submit slurm .*--nodes (\d+) --gpus (\d+)"
    commands += [(int(n) * int(gpus), name) for name, n, gpus in re.findall(slurm, page)]
    assert {name for _, name in commands} == {"base"}
    for n_ranks, name in commands:
        of, maker = presets(name)
        require_memory(of, maker, CARD, n_ranks)
