"""kill -9 at random moments, on one and on two ranks: bitwise the run that was never stopped.

A few kills here; fifty with

    HEADCT_KILLS=50 pytest tests/train/test_kills.py
"""

import os
import random
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from headct.run import read_jsonl

from .saved import tensors_of
from .tiny import RANKS_ENVIRONMENT, command, make_store, ranks_of, torchrun, write_recipe

KILLS = int(os.environ.get("HEADCT_KILLS", "2"))
STEPS = 20 + 20 * KILLS
STARTING = 0.4
"""Share of the kills that fall into starting and reading the checkpoint."""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(store, recipe file): a checkpoint every second step, and every step in the metrics."""
    folder = tmp_path_factory.mktemp("kills")
    record = {"metrics_every": 1, "checkpoint_every": 2, "keep_checkpoints": 2, "panel_every": 7}
    record["trackers"] = []
    return make_store(folder / "store"), write_recipe(
        folder / "tiny.toml", steps=STEPS, record=record
    )


def start(arguments, ranks):
    call = command(*arguments) if ranks == 1 else torchrun(*arguments, ranks=ranks)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, env=RANKS_ENVIRONMENT, **quiet)


def last_step(run):
    return max((row["step"] for row in read_jsonl(run / "metrics.jsonl")), default=0)


def kill_once(arguments, ranks, run, rng) -> bool:
    """Kill all processes of the run at once; whether that was in training."""
    before = last_step(run)
    with start(arguments, ranks) as process:
        starting = rng.random() < STARTING
        if starting:
            time.sleep(rng.uniform(0, 5))
        else:
            deadline = time.monotonic() + 200
            while last_step(run) <= before:
                assert process.poll() is None, process.stderr.read()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4))
        assert process.poll() is None, "the run was over before the last kill"
        # torchrun gives each rank a session of its own
        for pid in (process.pid, *ranks_of(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    return not starting


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_random_moments(case, tmp_path, ranks):
    store, toml = case
    whole, run = tmp_path / "whole", tmp_path / "run"
    rng = random.Random(ranks)
    arguments = (toml, "--store", store, "--out", run)
    kills = [kill_once(arguments, ranks, run, rng) for _ in range(KILLS)]
    print(f"{ranks} ranks: {KILLS} kills, {sum(kills)} in training, at step {last_step(run)}")
    for out in (run, whole):
        with start((toml, "--store", store, "--out", out), ranks) as process:
            _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said[-3000:]
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
