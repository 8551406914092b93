"""The lines of metrics.jsonl reach the trackers, and nothing else does."""

from __future__ import annotations

import getpass
import os
import re
import socket
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

from headct.errors import UsageError
from headct.run import read_jsonl
from headct.train import trackers as module
from headct.train.trackers import numbers, open_trackers, require_trackers

from .tiny import headct_pretrain, make_store, recipe, write_recipe

ROWS = [
    {"step": 1, "seen_scans": 4, "loss": 2.5, "mae_loss": None, "applied": True, "lr": 1e-3},
    {"step": 2, "seen_scans": 8, "loss": 1.5, "mae_loss": 1.0, "applied": True, "alarms": ["x"]},
]


def written_twice(name, folder):
    """A run that was stopped after its first line and went on."""
    folder.mkdir(exist_ok=True)
    for row in ROWS:
        with open_trackers([name], folder, recipe(), row["step"] - 1) as (sink,):
            sink(row)


def require_nothing_of_the_machine(folder):
    secrets = {socket.gethostname(), str(folder)} - {"", "localhost"}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not any(secret in str(path.relative_to(folder)) for secret in secrets)
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in secrets), path.name


def test_tensorboard_reads_every_number_by_its_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written_twice("tensorboard", tmp_path / "run")
    found = {}
    for file in sorted((tmp_path / "run" / "tensorboard").iterdir()):
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            name = tag.split("/")[1]
            found |= {(name, e.step): e.value for e in events.Scalars(tag)}
    wanted = {(name, row["step"]): v for row in ROWS for name, v in numbers(row).items()}
    assert found == pytest.approx(wanted)
    assert ("loss", 2) in found
    assert ("mae_loss", 1) not in found, "what was not finite is left out"
    require_nothing_of_the_machine(tmp_path / "run")


def test_tensorboard_shows_a_step_that_was_done_again_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step, loss in ((0, 3.0), (1, 2.0)):
        with open_trackers(["tensorboard"], tmp_path, recipe(), first_step) as (sink,):
            for step in range(first_step + 1, 4):
                sink({"step": step, "loss": loss})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/loss")] == [(1, 3), (2, 2), (3, 2)]


@pytest.mark.filterwarnings("ignore")  # of MLflow's own database library
def test_a_tracker_that_fails_is_left_out_and_training_goes_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="MLflow keeps runs in a database, or on a server")
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    folder = tmp_path / "run"
    folder.mkdir()
    with open_trackers(["mlflow"], folder, recipe(), 0) as (sink,):
        sink(ROWS[0])
        database.write_bytes(b"no database any more")
        sink(ROWS[1])
        sink(ROWS[1])
    said = capsys.readouterr().err
    assert said.count("mlflow failed") == 1
    assert str(tmp_path) not in said
    with open_trackers(["mlflow"], folder, recipe(), 0) as (sink,):  # the run is known there
        sink(ROWS[1])
    assert "mlflow failed" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with (
            pytest.raises(UsageError, match="mlflow does not take the run") as error,
            open_trackers(["mlflow"], tmp_path, recipe(), 0),
        ):
            pass
    assert "MLFLOW_TRACKING_URI" in error.value.remedy
    assert {name: os.environ[name] for name in module.MLFLOW_PATIENCE} == module.MLFLOW_PATIENCE


def test_wandb_that_takes_no_run_is_an_error_each_time_until_it_has(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.CommError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", refuse)
        for _ in range(2):
            with (
                pytest.raises(UsageError, match="wandb does not take the run") as error,
                open_trackers(["wandb"], tmp_path, recipe(), 0),
            ):
                pass
        assert "WANDB_MODE" in error.value.remedy
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_trackers(["wandb"], tmp_path, recipe(), 0):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", refuse)
        with open_trackers(["wandb"], tmp_path, recipe(), 1) as (sink,):
            sink(ROWS[1])
    assert "wandb failed (CommError)" in capsys.readouterr().err


def test_a_full_disk_is_not_the_fault_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(FileExistsError), open_trackers(["tensorboard"], tmp_path, recipe(), 0):
        pass


@pytest.mark.filterwarnings("ignore")  # of MLflow's own database library
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_fails_is_failed_and_its_error_passes(tmp_path, monkeypatch, error):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="MLflow keeps runs in a database, or on a server")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def fail():
        with open_trackers(["mlflow"], tmp_path, recipe(), 0) as (sink,):
            sink(ROWS[0])
            raise error("of the run")

    with pytest.raises(error, match="of the run"):
        fail()
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("headct").experiment_id])
    assert run.info.status == "FAILED"


def test_who_interrupts_a_line_is_heard(tmp_path, monkeypatch):
    @contextmanager
    def interrupted(*_):
        def sink(_):
            raise KeyboardInterrupt

        yield sink

    monkeypatch.setitem(module.OPENERS, "tensorboard", interrupted)
    pytest.importorskip("tensorboard")
    with (
        pytest.raises(KeyboardInterrupt),
        open_trackers(["tensorboard"], tmp_path, recipe(), 0) as (sink,),
    ):
        sink(ROWS[0])


def test_mlflow_has_one_run_with_its_settings_also_after_a_stop(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic", reason="MLflow keeps runs in a database, or on a server")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own database library
        written_twice("mlflow", folder)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("headct").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "loss")] == [2.5, 1.5]
    assert run.data.params["steps"] == str(recipe().steps)
    assert run.data.params["objective.mae.weight"] == str(recipe().objective.mae.weight)
    assert getpass.getuser() not in str(run.data.tags)


def written(file):
    """Its content, when W&B's own process has closed it."""
    deadline = time.monotonic() + 60
    while b"mae_loss" not in (data := file.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return data


def test_wandb_without_a_network_writes_one_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # a name that random bytes do not contain by chance, as they do "vm"
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7-workstation")
    folder = tmp_path / "run"
    folder.mkdir()
    with open_trackers(["wandb"], folder, recipe(), 0) as (sink,):
        for row in ROWS:
            sink(row)
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data = written(file)
    assert b"mae_loss" in data
    assert b"n_global" in data, "the recipe"
    assert b"ward-7-workstation" not in data
    assert not list(folder.rglob("requirements.txt")), "what else is installed here"


@pytest.mark.filterwarnings("ignore")  # of MLflow's own database library
def test_the_setting_of_the_docs_reaches_all_three_and_no_network(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for needed in ("alembic", "wandb", "tensorboard"):
        pytest.importorskip(needed)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "pretrain.md"
    (setting,) = set(re.findall(r'--set "(record.trackers=.*?)"', page.read_text()))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("WANDB_MODE", "offline")
    store, toml = make_store(tmp_path / "store"), write_recipe(tmp_path / "tiny.toml", steps=2)
    run = tmp_path / "run"
    done = headct_pretrain(toml, "--store", store, "--out", run, "--set", setting)
    assert done.returncode == 0, done.stderr
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 1
    client = mlflow.MlflowClient(uri)
    (sent,) = client.search_runs([client.get_experiment_by_name("headct").experiment_id])
    rows = list(read_jsonl(run / "metrics.jsonl"))
    assert sent.info.run_id in (run / "trackers.json").read_text()
    assert sent.info.run_name == sent.data.params["name"].strip('"') == "tiny"
    assert [m.value for m in client.get_metric_history(sent.info.run_id, "loss")] == [
        row["loss"] for row in rows
    ]


def test_what_is_not_installed_is_said_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    require_trackers(["tensorboard"])
    with open_trackers(["tensorboard"], tmp_path, recipe(), 0) as sinks:
        assert sinks == []
    assert "headct[track]" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not installed: mlflow"):
        require_trackers(["tensorboard", "mlflow"])
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("mlflow")
    with pytest.raises(UsageError, match="where is MLflow"):
        require_trackers(["mlflow"])


def test_metrics_of_a_run_are_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from headct.train.pretrain import pretrain

    store = make_store(tmp_path / "store")
    pretrain(recipe(steps=2), store, tmp_path / "run", threads=1)
    assert len(list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))) == 2
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"guards/effective_rank" in file.read_bytes()


def test_tensorboard_has_the_whole_of_a_run_that_was_stopped(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from headct.train import pretrain as pretraining

    class AfterTwo(pretraining.StopRequest):
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls >= 2

    store, of = make_store(tmp_path / "store"), recipe(steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "StopRequest", AfterTwo)
        assert pretraining.pretrain(of, store, tmp_path / "run", threads=1).status == "stopped"
    assert pretraining.pretrain(of, store, tmp_path / "run", threads=1).status == "finished"
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss/loss")] == [1, 2, 3, 4]
