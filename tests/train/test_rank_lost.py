"""A rank dies or falls silent: all stop in time with the cause, and the run goes on by itself."""

import os
import re
import signal
import socket
import subprocess
import time

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from headct.errors import TrainingError
from headct.run import read_jsonl
from headct.train import runtime
from headct.train.runtime import RANK_LOST, StopRequest, part, start_runtime

from .tiny import RANKS_ENVIRONMENT, make_store, ranks_of, run_ranks, torchrun, write_recipe

STEPS = 60
ENDLESS = ("--set", "steps=5000")
"""Of runs that are struck and stay down; a busy machine strikes late."""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(store, recipe file)."""
    folder = tmp_path_factory.mktemp("lost")
    record = {"metrics_every": 1, "checkpoint_every": 2, "panel_every": 0}
    toml = write_recipe(folder / "tiny.toml", steps=STEPS, record=record)
    return make_store(folder / "store"), toml


def strike(arguments, run, number, restarts=0, *more):
    """Send a signal to the second of two ranks in mid-run: (exit code, stderr, seconds after)."""
    start = torchrun(*arguments, *more, restarts=restarts)
    process = subprocess.Popen(
        start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=RANKS_ENVIRONMENT
    )
    deadline = time.monotonic() + 200
    while not any(row["step"] >= 7 for row in read_jsonl(run / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim = ranks_of(process.pid)[1]
    os.kill(victim, number)
    struck = time.monotonic()
    try:
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode, said, time.monotonic() - struck


def test_a_dead_rank_stops_the_other_with_the_cause(case, tmp_path):
    store, toml = case
    run = tmp_path / "run"
    arguments = (toml, "--store", store, "--out", run, *ENDLESS)
    code, said, seconds = strike(arguments, run, signal.SIGKILL)
    assert code != 0
    assert seconds < 60
    assert "Signal 9 (SIGKILL)" in said
    assert "[rank-lost]" in said
    assert "rank 0 of 2 stops" in said
    assert "last checkpoint" in said


def test_a_rank_that_says_why_it_stops_is_not_ended_by_sigterm(monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    alone = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    before, interrupt = (signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT))
    try:
        with (
            pytest.raises(TrainingError, match="rank 0 of 2 stops") as raised,
            StopRequest().listening(),
            start_runtime(rank_timeout_s=1),
        ):
            pass
        assert raised.value.code == RANK_LOST
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_silent_rank_stops_the_other_in_time(case, tmp_path):
    store, toml = case
    run = tmp_path / "run"
    arguments = (toml, "--store", store, "--out", run, *ENDLESS)
    arguments += ("--set", "compute.rank_timeout_s=8")
    code, said, seconds = strike(arguments, run, signal.SIGSTOP)
    assert code != 0
    assert seconds < 8 + 60  # torchrun gives a stopped rank 30 s to die before it kills it
    assert re.search(r"rank 0 of 2 stops: another rank died or has not\s+answered for\s+8 s", said)


def test_torchrun_restarts_from_the_last_checkpoint(case, tmp_path):
    store, toml = case
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = run_ranks(toml, "--store", store, "--out", whole)
    assert done.returncode == 0, done.stderr[-3000:]
    code, said, _ = strike((toml, "--store", store, "--out", run), run, signal.SIGKILL, 1)
    assert code == 0, said[-3000:]
    events = list(read_jsonl(run / "events.jsonl"))
    lost = [row for row in events if row["event"] == "failed"]  # where torchrun leaves time for it
    assert [row["reason"] for row in lost] in ([], ["rank-lost"])
    events = [row for row in events if row["event"] != "failed"]
    assert [row["event"] for row in events] == ["started", "resumed", "finished"]
    assert events[1]["step"] >= 4
    weights = [load_file(r / "bundle" / "encoder.safetensors") for r in (whole, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_group_outlives_who_used_it():
    """DDP's reducer must not be the last to hold it: about one of some thousand ends then hangs."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    part()
    assert not dist.is_initialized()
    assert [group] == runtime._PARTED
    part()  # nothing to leave
    assert [group] == runtime._PARTED
