"""kill -9 at random moments, on one and on two ranks: bitwise the run that was never stopped.

A few kills here; fifty with

    HEADCT_KILLS=50 pytest tests/train/test_kills.py
"""

import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from headct.run import read_jsonl

from .forked import start_ranks
from .saved import tensors_of
from .tiny import make_store, write_recipe

KILLS = int(os.environ.get("HEADCT_KILLS", "4"))
STEPS = 20 + 20 * KILLS
STARTING = 0.4
"""Share of the kills that fall into starting and reading the checkpoint."""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(recipe file, store): a checkpoint every second step, and every step in the metrics."""
    folder = tmp_path_factory.mktemp("kills")
    record = {"metrics_every": 1, "checkpoint_every": 2, "keep_checkpoints": 2, "panel_every": 7}
    record["trackers"] = []
    toml = write_recipe(folder / "tiny.toml", steps=STEPS, record=record)
    return toml, make_store(folder / "store")


def last_step(run):
    return max((row["step"] for row in read_jsonl(run / "metrics.jsonl")), default=0)


def kill_once(ranks, case, run, rng) -> bool:
    """Kill all ranks at once; whether that was in training."""
    before = last_step(run)
    processes = start_ranks(ranks, *case, run)
    starting = rng.random() < STARTING
    if starting:
        time.sleep(rng.uniform(0, 1.5))
    else:
        deadline = time.monotonic() + 200
        while last_step(run) <= before:
            assert all(process.is_alive() for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
    assert all(process.is_alive() for process in processes), "over before the last kill"
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()
    return not starting


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments(case, tmp_path, ranks):
    whole, run = tmp_path / "whole", tmp_path / "run"
    rng = random.Random(ranks)
    kills = [kill_once(ranks, case, run, rng) for _ in range(KILLS)]
    print(f"{ranks} ranks: {KILLS} kills, {sum(kills)} in training, at step {last_step(run)}")
    for out in (run, whole):
        for process in start_ranks(ranks, *case, out):
            process.join(900)
            assert process.exitcode == 0
    losses = [
        [
            (row["step"], row["loss"], row["gradient_norm"])
            for row in read_jsonl(r / "metrics.jsonl")
        ]
        for r in (whole, run)
    ]
    assert [step for step, _, _ in losses[0]] == list(range(1, STEPS + 1))
    assert losses[0] == losses[1]
    last = f"checkpoints/step-{STEPS:08d}"
    saved = [tensors_of(r / last) for r in (whole, run)]
    bundles = [load_file(r / "bundle" / "encoder.safetensors") for r in (whole, run)]
    for a, b in (saved, bundles):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list((run / "checkpoints").glob(".*"))
