"""Several ranks of one machine: the same data, replicated or sharded, in any number."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headct.run import read_jsonl
from headct.train.checkpoint import latest_checkpoint

from .tiny import headct_pretrain, make_store, run_ranks, write_recipe

STEPS = 6
# nothing is drawn per rank and no term compares scans, so that any number of ranks is alike
EXACT = {
    "steps": STEPS,
    "objective": {
        "window_jitter": [0.0, 0.0],
        "decoder": {"width": 24, "heads": 2, "depth": 1},
        "mae": {"predicted_fraction": 1.0},
        "lat": {"weight": 0.3, "ramp": [0.2, 0.5]},
        "cls": {"weight": 0},
    },
    "record": {"metrics_every": 1, "checkpoint_every": 3, "keep_checkpoints": 4, "panel_every": 3},
}


def exact_encoder():
    from .tiny import RECIPE

    return RECIPE["encoder"] | {"drop_path": 0.0, "rope_jitter": [1.0, 1.0]}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(store, recipe file)."""
    folder = tmp_path_factory.mktemp("ranks")
    store = make_store(folder / "store")
    return store, write_recipe(folder / "tiny.toml", **EXACT, encoder=exact_encoder())


def rows_of(run):
    return [
        {k: v for k, v in row.items() if k not in VARYING}
        for row in read_jsonl(run / "metrics.jsonl")
    ]


VARYING = {"scans_per_s", "wait_share", "mfu", "tflops", "eta_s", "peak_memory_gib"}


def weights_of(run):
    return load_file(run / "bundle" / "encoder.safetensors")


def assert_close(one, other):
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def one_rank(case, tmp_path_factory):
    store, toml = case
    run = tmp_path_factory.mktemp("one") / "run"
    done = headct_pretrain(toml, "--store", store, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two_ranks(request, case, tmp_path_factory):
    store, toml = case
    run = tmp_path_factory.mktemp(request.param) / "run"
    arguments = (toml, "--store", store, "--out", run)
    done = run_ranks(*arguments, "--set", f"compute.strategy={request.param}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("scans seen") == 1, "one rank speaks for all"
    return run, request.param, arguments


def test_two_ranks_learn_what_one_learns(two_ranks, one_rank):
    run, _, _ = two_ranks
    rows, alone = rows_of(run), rows_of(one_rank)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["seen_scans"] == 4 * STEPS
    (event, _) = read_jsonl(run / "events.jsonl")
    assert event["world_size"] == 2
    losses = [np.array([row["loss"] for row in table]) for table in (rows, alone)]
    np.testing.assert_allclose(*losses, rtol=2e-2)  # tissue weights are a rank's own
    norms = [np.array([row["gradient_norm"] for row in table]) for table in (rows, alone)]
    np.testing.assert_allclose(*norms, rtol=0.1)
    assert len(list((run / "panels").iterdir())) == 2


def test_two_ranks_resume_bitwise(two_ranks, tmp_path):
    whole, strategy, (toml, _, store, *_) = two_ranks
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    arguments = (toml, "--store", store, "--out", run, "--set", f"compute.strategy={strategy}")
    done = run_ranks(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["event"] for row in read_jsonl(run / "events.jsonl")][-2:] == [
        "resumed",
        "finished",
    ]
    assert rows_of(run) == rows_of(whole)
    a, b = weights_of(whole), weights_of(run)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_one_rank_goes_on_where_two_stopped(two_ranks, tmp_path):
    """Also from shards to whole weights: with the same batch, order and schedule."""
    whole, _, (toml, _, store, *_) = two_ranks
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    done = headct_pretrain(toml, "--store", store, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "earlier 2 ranks, now 1" in done.stderr
    assert rows_of(run)[:3] == rows_of(whole)[:3]
    assert latest_checkpoint(run / "checkpoints").counters["seen_scans"] == 4 * STEPS
    assert_close(run, whole)


def test_an_anchor_and_centred_prototypes_can_be_sharded(case, tmp_path):
    store, _ = case
    objective = EXACT["objective"] | {
        "gram": {"weight": 1.0, "anchor_fraction": 0.2, "ramp": [0.3, 0.3]},
        "cls": {
            "weight": 0.5,
            "ramp": [0.0, 0.0],
            "objective": "centring",
            "hidden": 16,
            "out": 8,
            "centring": {"n_prototypes": 32},
        },
    }
    encoder = exact_encoder() | {"position_grid_zyx": [4, 4, 4], "n_tokens": 64}
    changes = EXACT | {"objective": objective, "encoder": encoder}
    views = {"crop": {"n_global": 2, "n_local": 2, "stretch": True}}
    toml = write_recipe(tmp_path / "tiny.toml", **changes, views=views)
    whole = tmp_path / "whole"
    done = headct_pretrain(toml, "--store", store, "--out", whole)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    done = run_ranks(toml, "--store", store, "--out", run, "--set", "compute.strategy=fsdp")
    assert done.returncode == 0, done.stderr[-3000:]
    for one, other in zip(rows_of(whole), rows_of(run), strict=True):
        np.testing.assert_allclose(one["cls_loss"], other["cls_loss"], rtol=1e-3)
        assert ("gram_loss" in other) is (other["step"] > 2)


@pytest.fixture(scope="module")
def with_muon(case, tmp_path_factory):
    """(store, recipe file, a run of one rank)."""
    folder = tmp_path_factory.mktemp("muon")
    toml = write_recipe(
        folder / "tiny.toml", **EXACT, encoder=exact_encoder(), optim={"lr": 1e-3, "muon_lr": 3e-3}
    )
    run = folder / "run"
    done = headct_pretrain(toml, "--store", case[0], "--out", run)
    assert done.returncode == 0, done.stderr
    return case[0], toml, run


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon_moves_matrices_alike_on_any_number_of_ranks(with_muon, strategy, tmp_path):
    store, toml, alone = with_muon
    run = tmp_path / "run"
    arguments = (toml, "--store", store, "--out", run, "--set", f"compute.strategy={strategy}")
    done = run_ranks(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [np.array([row["loss"] for row in rows_of(r)]) for r in (run, alone)]
    np.testing.assert_allclose(*losses, rtol=2e-2)
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    before, weights = rows_of(run), weights_of(alone)
    done = run_ranks(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows_of(run) == before
    assert weights_of(run).keys() == weights.keys()
