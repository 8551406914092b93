"""The real command, killed: what it goes on to is bitwise the run that was never stopped."""

import random
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from headct.run import read_jsonl
from headct.train.pretrain import pretrain

from .saved import tensors_of
from .tiny import command, headct_pretrain, make_store, recipe, write_recipe

STEPS = 30


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(store, recipe file, uninterrupted run)."""
    folder = tmp_path_factory.mktemp("kill")
    store = make_store(folder / "store")
    pretrain(recipe(steps=STEPS), store, folder / "whole", threads=1)
    return store, write_recipe(folder / "tiny.toml", steps=STEPS), folder / "whole"


def interrupt(arguments, run, after_step, number) -> tuple[int, str]:
    """Start the command and send it a signal some time after it wrote the line of a step."""
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while not any(row["step"] >= after_step for row in read_jsonl(run / "metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.Random(after_step).uniform(0, 0.05))
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    return process.returncode, said


def assert_same_run(one, other):
    first, second = (
        [
            (row["step"], row["loss"], row["gradient_norm"])
            for row in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (one, other)
    )
    assert first == second
    last = f"checkpoints/step-{STEPS:08d}"
    pairs = [(tensors_of(one / last), tensors_of(other / last))]
    pairs += [tuple(load_file(run / "bundle" / "encoder.safetensors") for run in (one, other))]
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_killed_and_then_asked_to_stop(case, tmp_path):
    store, toml, whole = case
    run = tmp_path / "run"
    arguments = (toml, "--store", store, "--out", run)
    assert interrupt(arguments, run, 8, signal.SIGKILL)[0] == -signal.SIGKILL
    code, said = interrupt(arguments, run, 16, signal.SIGTERM)
    assert code == 130
    assert "saved at step" in said
    done = headct_pretrain(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"{STEPS} steps" in done.stdout
    assert_same_run(whole, run)
    assert not list((run / "checkpoints").glob(".*"))
