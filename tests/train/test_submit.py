"""A run as a job: through submitit on this machine, asked to stop, queued again, finished."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headct.errors import UsageError
from headct.run import read_jsonl
from headct.train.pretrain import pretrain
from headct.train.submit import Resources, submit

from .tiny import command, headct_pretrain, make_store, recipe, write_recipe

STEPS = 80
RECORD = {"metrics_every": 1, "checkpoint_every": 100, "panel_every": 0}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(store, recipe file, uninterrupted run)."""
    folder = tmp_path_factory.mktemp("jobs")
    store = make_store(folder / "store")
    pretrain(recipe(steps=STEPS, record=RECORD), store, folder / "whole", threads=1)
    toml = write_recipe(folder / "tiny.toml", steps=STEPS, record=RECORD)
    return store, toml, folder / "whole"


def children_of(parent: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def submitted(*arguments, log: Path) -> int:
    """Process id of the job's controller, which outlives the command and its output."""
    with log.open("w") as said:
        start = command(*arguments, "--submit", "local")
        subprocess.run(start, stdout=said, stderr=subprocess.STDOUT, check=True, timeout=120)
    return int(log.read_text().split()[1].strip(";"))


def wait_for(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the job's processes in /proc"
)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_stop_it_comes_back_and_ends_as_if_it_had_not(case, tmp_path, number):
    pytest.importorskip("submitit")
    store, toml, whole = case
    run = tmp_path / "run"
    controller = submitted(toml, "--store", store, "--out", run, log=tmp_path / "said.txt")
    metrics = run / "metrics.jsonl"
    wait_for(lambda: any(row["step"] >= 5 for row in read_jsonl(metrics)))
    (rank,) = children_of(controller)
    os.kill(rank, number)
    wait_for((run / "bundle" / "bundle.json").is_file)
    events = [row["event"] for row in read_jsonl(run / "events.jsonl")]
    assert events[:3] == ["started", "stopped", "resumed"]
    (log,) = (tmp_path / "run.jobs").glob("*_log.out")
    assert "Requeued job" in log.read_text()
    weights = [load_file(r / "bundle" / "encoder.safetensors") for r in (whole, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_run_is_said_before_it_is_queued(case, tmp_path):
    store, toml, _ = case
    again = ("--store", store, "--out", tmp_path / "run", "--submit", "local")
    done = headct_pretrain(toml, *again, "--set", "encoder.width=25")
    assert done.returncode == 2
    assert "width 25" in done.stderr
    assert not (tmp_path / "run.jobs").exists()


def test_without_slurm_it_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="slurm does not take the job"):
        submit(bool, tmp_path / "jobs", "slurm", Resources())
