"""Recomputed and compiled blocks learn the same; gradients are shared once a step."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from headct.model.architecture import ENCODERS
from headct.model.blocks import Block
from headct.model.tokens import window_tensors
from headct.objective.joint import JointObjective
from headct.objective.mae import pull_of_patches
from headct.run import read_jsonl
from headct.train.distribute import ComputeConfig, prepare
from headct.train.pretrain import pretrain
from headct.train.runtime import Runtime
from headct.views.batch import ViewBatch

from .tiny import RECIPE, make_store, recipe

CPU = Runtime(torch.device("cpu"), torch.float32)
STEPS = 6
# compiled code draws other random numbers for drop path
SMALLEST = {
    "encoder": RECIPE["encoder"] | {"depth": 1, "drop_path": 0.0},
    "objective": {
        "decoder": {"width": 24, "heads": 2, "depth": 1},
        "lat": {"weight": 0},
        "cls": {"weight": 0},
    },
    "record": {"metrics_every": 1, "panel_every": 0},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("compute") / "store")


@pytest.fixture(scope="module")
def plain(store, tmp_path_factory):
    return trained(store, tmp_path_factory.mktemp("plain") / "run")


def trained(store, run, **compute):
    record = {"metrics_every": 1, "panel_every": 3}
    pretrain(recipe(steps=STEPS, record=record, compute=compute), store, run, threads=1)
    return run


def weights_of(run):
    return load_file(run / "bundle" / "encoder.safetensors")


def test_recomputed_blocks_give_bitwise_the_same_weights(store, plain, tmp_path):
    again = trained(store, tmp_path / "run", activation_checkpointing=True)
    a, b = weights_of(plain), weights_of(again)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_blocks_are_recomputed_and_keep_only_their_input():
    torch.manual_seed(0)
    calls = []
    block = Block(24, 2, 4)
    block.norm1.register_forward_hook(lambda *_: calls.append(1))
    module = torch.nn.Sequential(block)
    prepare(module, ComputeConfig(activation_checkpointing=True), CPU)
    block(torch.rand(2, 5, 24, requires_grad=True), None).sum().backward()
    assert len(calls) == 2
    assert "0.attn.qkv.weight" in module.state_dict()


def test_a_block_is_one_graph_for_any_number_of_tokens():
    torch._dynamo.reset()
    block = Block(24, 2, 4, layer_scale=0.1)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="eager")
    rotation = torch.rand(2, 9, 1, 1, 6, 2)
    for n_tokens in (5, 7, 9):
        x, turn = torch.rand(2, n_tokens, 24), rotation[:, :n_tokens]
        torch.testing.assert_close(compiled(x, turn), block(x, turn))


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_run_compiles_what_the_pixel_loss_is_made_with():
    objective = JointObjective(recipe().objective, recipe().encoder)
    prepare(objective, ComputeConfig(compile=True), CPU)
    assert objective.pull is not pull_of_patches
    calls = []

    def counted(*inputs):
        calls.append(1)
        return pull_of_patches(*inputs)

    objective = JointObjective(recipe().objective, recipe().encoder)
    objective.pull = counted
    hu, keep = 50 * torch.randn(2, 1, 24, 24, 24), torch.arange(27).expand(2, 1, -1)
    masked = (torch.arange(27) < 14).expand(2, 1, -1)
    flipped = torch.zeros(2, 1, dtype=torch.bool)
    views = ViewBatch(hu, hu[:, :0], keep, masked, 14, flipped, (2.0, 2.0, 2.0))
    assert torch.isfinite(objective(views, 0.0)["loss"])
    assert calls == [1]


@pytest.mark.parametrize("normalised", [False, True])
def test_the_pixel_loss_is_one_graph_for_any_number_of_patches(normalised):
    torch._dynamo.reset()
    compiled = torch.compile(pull_of_patches, fullgraph=True, dynamic=True, backend="eager")
    windows = window_tensors(ENCODERS["demo"].windows, torch.device("cpu"))
    for n_patches in (5, 8, 13):
        predicted, voxels_hu = torch.randn(n_patches, 3, 64), 100 * torch.randn(n_patches, 64)
        inputs = (predicted, voxels_hu, *windows, 0.03, normalised)
        torch.testing.assert_close(compiled(*inputs), pull_of_patches(*inputs))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_learn_the_same(store, tmp_path):
    torch._dynamo.reset()
    losses = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        of = recipe(steps=2, compute={"compile": compiled}, **SMALLEST)
        pretrain(of, store, run, threads=1)
        losses.append([row["loss"] for row in read_jsonl(run / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
