"""The real command, killed: what it goes on to is bitwise the run that was never stopped."""

import os
import random
import shutil
import signal
import subprocess
import sys
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


def test_two_ranks_see_the_same_scans_and_resume_bitwise(case, tmp_path):
    store, toml, _ = case

    def torchrun(out, *more):
        ranks = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
        ]
        headct = [*ranks, "--no-python", *command(toml, "--store", store, "--out", out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [*headct, *more], capture_output=True, text=True, env=environment, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]

    short = ("--set", "steps=6", "--set", "record.checkpoint_every=3")
    torchrun(tmp_path / "one", *short)
    rows = list(read_jsonl(tmp_path / "one" / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert rows[-1]["seen_scans"] == 24
    (event, _) = read_jsonl(tmp_path / "one" / "events.jsonl")
    assert event["world_size"] == 2
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-00000006")
    (tmp_path / "one" / "bundle").rename(tmp_path / "gone")
    before = load_file(tmp_path / "gone" / "encoder.safetensors")
    torchrun(tmp_path / "one", *short)
    after = load_file(tmp_path / "one" / "bundle" / "encoder.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert rows == [
        row | {"scans_per_s": old["scans_per_s"]}
        for row, old in zip(read_jsonl(tmp_path / "one" / "metrics.jsonl"), rows, strict=True)
    ]
