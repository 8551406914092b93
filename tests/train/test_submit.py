"""A run as a job: through submitit on this machine, asked to stop, queued again, finished."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from headct.cli.app import app
from headct.errors import UsageError
from headct.run import read_jsonl
from headct.train.pretrain import pretrain
from headct.train.submit import Resources, submit

from .tiny import command, make_store, recipe, write_recipe

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
    wait_for(lambda: not list((tmp_path / "run.jobs").glob("*.pkl")))


def invoked(*arguments):
    """What the command raises, in this process."""
    return CliRunner().invoke(app, ["pretrain", *map(str, arguments)]).exception


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["encoder.width=25"], "width 25"),
        (["views.crop.local_mm=400"], "larger than the field of view"),
        (["batch=5", "accumulate=2"], "a batch of 5 cannot be shared"),
        (["encoder.patch_voxels_zyx=[3,4,4]"], "do not divide the grid"),
        (["encoder.spacing_mm_zyx=[2,2,2]"], "the store has"),
        (["objective.mae.channel_weights=[1,1]"], "2 numbers for 3 windows"),
        (["record.trackers=['mlflow']"], "where is MLflow"),
    ],
)
def test_what_the_run_refuses_is_not_queued(case, tmp_path, monkeypatch, settings, words):
    if "MLflow" in words:
        pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, toml, _ = case
    sets = [part for setting in settings for part in ("--set", setting)]
    arguments = (toml, "--store", store, "--out", tmp_path / "run", *sets)
    run, job = invoked(*arguments), invoked(*arguments, "--submit", "local")
    assert words in str(run)
    assert (type(job), str(job)) == (type(run), str(run))
    assert not (tmp_path / "run.jobs").exists()


def test_a_store_of_another_run_is_not_queued(case, tmp_path):
    _, toml, whole = case
    other = make_store(tmp_path / "other", seed=1)
    again = (toml, "--store", other, "--out", whole)
    run, job = invoked(*again), invoked(*again, "--submit", "local")
    assert "started with another store" in str(run)
    assert (type(job), str(job)) == (type(run), str(run))


def test_the_batch_is_held_against_the_ranks_of_the_job(case, tmp_path):
    store, toml, _ = case
    job = (toml, "--store", store, "--out", tmp_path / "run", "--submit", "slurm")
    assert "by 3 ranks" in str(invoked(*job, "--tasks", "3"))
    assert "by 6 ranks" in str(invoked(*job, "--gpus", "3", "--nodes", "2"))
    assert "2 ranks on each machine" in str(invoked(*job, "--gpus", "1", "--tasks", "2"))


def test_a_job_that_fails_says_why_in_the_words_of_the_command(case, tmp_path):
    pytest.importorskip("submitit")
    store, toml, _ = case
    unchecked = f"""
from pathlib import Path
from headct.cli.pretrain import Call
from headct.train.submit import Resources, submit
sets = ("batch=5", "accumulate=2")
call = Call({str(toml)!r}, Path({str(store)!r}), Path("run"), sets, 1, None, None, None)
submit(call, Path("jobs"), "local", Resources())
"""
    subprocess.run([sys.executable, "-c", unchecked], cwd=tmp_path, check=True, timeout=120)

    def said() -> str:
        return "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.*"))

    wait_for(lambda: "what to do" in said() or "Traceback" in said())
    assert "error [usage]: a batch of 5 cannot be shared by 1 ranks" in said()
    assert "Traceback" not in said()


def test_without_slurm_it_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="slurm does not take the job"):
        submit(bool, tmp_path / "jobs", "slurm", Resources())
