"""What a run says of its course: where it goes on, and which scans it does without."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headct.errors import TrainingError
from headct.model.bundle import load_bundle
from headct.run import append_jsonl, read_jsonl
from headct.train import pretrain as module
from headct.train.events import FILE, Events, UnreadableWriter
from headct.train.loop import StepRecord
from headct.train.pretrain import pretrain
from headct.train.runtime import Runtime
from headct.views.loader import ScanBatch, Unreadable

from .tiny import make_store, recipe, run_ranks, write_recipe

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_another_number_of_threads_is_said_and_the_same_is_not(tmp_path, capsys):
    events = Events(tmp_path, CPU)
    events.tell_what_differs()
    events.note("started", 0, {})
    events.tell_what_differs()
    assert capsys.readouterr().err == ""
    (row,) = read_jsonl(tmp_path / FILE)
    append_jsonl(tmp_path / FILE, [row | {"threads": row["threads"] + 3}])
    events.tell_what_differs()
    said = capsys.readouterr().err
    assert f"earlier {row['threads'] + 3} threads, now {row['threads']}" in said
    assert "ranks" not in said


@pytest.fixture
def damaged_store(tmp_path):
    """A store that lost a shard of four scans."""
    path = make_store(tmp_path / "damaged")
    next(file for file in (path / "hu.zarr" / "c").rglob("*") if file.is_file()).unlink()
    return path


def lost_scans(run):
    """(step, scan, what came instead) of every line."""
    rows = [row for row in read_jsonl(run / "events.jsonl") if row["event"] == "unreadable"]
    assert all(row["reason"] == "damaged-scan" for row in rows)
    return sorted((row["step"], row["scan_id"], row["replaced_by"]) for row in rows)


def test_an_unreadable_scan_is_said_in_its_step(damaged_store, tmp_path, monkeypatch):
    known = []
    real = module.JointObjective.after_step

    def after_step(self, momentum):
        known.append(len(lost_scans(tmp_path / "run")))
        return real(self, momentum)

    monkeypatch.setattr(module.JointObjective, "after_step", after_step)
    how = recipe(max_unreadable_fraction=1.0)
    pretrain(how, damaged_store, tmp_path / "run", threads=1)
    lost = lost_scans(tmp_path / "run")
    assert known == [sum(step <= done for step, _, _ in lost) for done in range(12)]
    names = {scan for _, scan, _ in lost}
    assert len(names) == 4
    assert not names & {other for _, _, other in lost}
    assert list(read_jsonl(tmp_path / "run" / "events.jsonl"))[-1]["unreadable_scans"] == 4


def test_a_resumed_run_does_not_count_unreadable_scans_twice(damaged_store, tmp_path, monkeypatch):
    how = recipe(max_unreadable_fraction=1.0)
    pretrain(how, damaged_store, tmp_path / "whole", threads=1)
    real = module.JointObjective.after_step

    def after_step(self, momentum):
        if len(list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))) == 8:
            raise KeyboardInterrupt
        return real(self, momentum)

    with monkeypatch.context() as patch:
        patch.setattr(module.JointObjective, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(how, damaged_store, tmp_path / "run", threads=1)
    pretrain(how, damaged_store, tmp_path / "run", threads=1)
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [(row["event"], row["step"]) for row in events if "unreadable_scans" in row] == [
        ("started", 0),
        ("resumed", 6),
        ("finished", 12),
    ]
    assert lost_scans(tmp_path / "run") == lost_scans(tmp_path / "whole")
    assert events[-1]["unreadable_scans"] == 4
    assert load_bundle(tmp_path / "run" / "bundle").provenance["unreadable_scans"] == 4


def test_too_many_unreadable_scans_end_a_run_at_the_same_step_after_any_stop(
    damaged_store, tmp_path, monkeypatch
):
    def last_event(run):
        return list(read_jsonl(run / "events.jsonl"))[-1]

    with pytest.raises(TrainingError, match="cannot be read") as caught:
        pretrain(recipe(), damaged_store, tmp_path / "whole", threads=1)
    whole = last_event(tmp_path / "whole")
    assert (whole["event"], whole["reason"]) == ("failed", "unreadable-scans")
    assert (whole["step"], whole["unreadable_scans"]) == (4, 3)
    real = module.JointObjective.after_step

    def after_step(self, momentum):
        if len(list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))) == 3:
            raise KeyboardInterrupt
        return real(self, momentum)

    with monkeypatch.context() as patch:
        patch.setattr(module.JointObjective, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe(), damaged_store, tmp_path / "run", threads=1)
    assert 0 < len(lost_scans(tmp_path / "run")) < 4
    with pytest.raises(TrainingError) as again:
        pretrain(recipe(), damaged_store, tmp_path / "run", threads=1)
    assert again.value.message == caught.value.message
    assert last_event(tmp_path / "run")["step"] == whole["step"]


def test_what_another_rank_could_not_read_counts(tmp_path):
    events = Events(tmp_path, CPU)
    for name in ("c-0", "c-1", "c-1"):
        events.write("unreadable", 1, {"scan_id": name})
    write = UnreadableWriter(events, [f"c-{n}" for n in range(9)], most=3)
    write(None, a_step_without(1))
    write(None, a_step_without(2))
    assert events.count_unreadable() == 3
    with pytest.raises(TrainingError, match=r"at least 4 of 9 .* the 3 .*: c-0, c-1, c-2, c-5"):
        write(None, a_step_without(5))
    assert events.count_unreadable() == 4


def a_step_without(row):
    scans = ScanBatch(np.zeros((1, 1, 1, 1)), (8,), ((0, 0),), (Unreadable(row, "store", 8),))
    batch = SimpleNamespace(scans=scans)
    return StepRecord(2, {}, {}, 0.0, True, 1, 1.0, 0.0, (batch,))


def test_unreadable_scans_of_steps_that_are_done_again_are_taken_out(tmp_path):
    events = Events(tmp_path, CPU)
    events.note("started", 0)
    for step in (5, 6, 7):
        events.write("unreadable", step, {"scan_id": f"c-{step}"})
    events.note("stopped", 8)
    events.forget_unreadable(after=6)
    rows = list(read_jsonl(tmp_path / FILE))
    assert [(row["event"], row["step"]) for row in rows] == [
        ("started", 0),
        ("unreadable", 5),
        ("unreadable", 6),
        ("stopped", 8),
    ]
    assert events.count_unreadable() == 2


def test_each_rank_says_what_it_could_not_read(damaged_store, tmp_path):
    toml = write_recipe(tmp_path / "r.toml", max_unreadable_fraction=1.0, steps=8)
    done = run_ranks(toml, "--store", damaged_store, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert {row["rank"] for row in events if row["event"] == "unreadable"} == {0, 1}
    assert len({scan for _, scan, _ in lost_scans(tmp_path / "run")}) == 4
    assert events[-1]["unreadable_scans"] == 4
    assert "cannot be read [damaged-scan]" in done.stderr
