"""What a run says of its course: where it goes on, and which scans it does without."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headct.errors import MismatchError, StoreError, TrainingError
from headct.model.bundle import load_bundle
from headct.run import append_jsonl, read_jsonl
from headct.train import pretrain as module
from headct.train.events import FILE, Events, UnreadableScans
from headct.train.loop import StepRecord
from headct.train.pretrain import pretrain
from headct.train.runtime import Runtime
from headct.views.loader import ScanBatch, ScanLoader, Unreadable

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
    stop_in_mid_run(how, damaged_store, tmp_path / "run", 8, monkeypatch)
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
    with pytest.raises(TrainingError, match="could not be read") as caught:
        pretrain(recipe(), damaged_store, tmp_path / "whole", threads=1)
    (whole,) = failures(tmp_path / "whole")
    assert (whole["reason"], whole["unreadable_scans"]) == ("unreadable-scans", 4)
    before = {scan for step, scan, _ in lost_scans(tmp_path / "whole") if step < whole["step"]}
    assert len(before) < 4
    stop_in_mid_run(recipe(), damaged_store, tmp_path / "run", 3, monkeypatch)
    assert lost_scans(tmp_path / "run")
    with pytest.raises(TrainingError) as again:
        pretrain(recipe(), damaged_store, tmp_path / "run", threads=1)
    assert again.value.message == caught.value.message
    assert [row["step"] for row in failures(tmp_path / "run")] == [whole["step"]]

    done = run_ranks(
        write_recipe(tmp_path / "r.toml"), "--store", damaged_store, "--out", tmp_path / "ranks"
    )
    assert done.returncode != 0
    assert "at least 4 of 22 scans could not be read" in done.stderr
    told = failures(tmp_path / "ranks")
    assert {row["reason"] for row in told} <= {"unreadable-scans", "rank-lost"}
    steps = {row["step"] for row in told if row["reason"] == "unreadable-scans"}
    assert steps == {whole["step"]}


def stop_in_mid_run(how, store, run, n_steps, monkeypatch):
    """Interrupt a run in the step after so many that were written down."""
    real = module.JointObjective.after_step

    def after_step(self, momentum):
        if len(list(read_jsonl(run / "metrics.jsonl"))) == n_steps:
            raise KeyboardInterrupt
        return real(self, momentum)

    with monkeypatch.context() as patch:
        patch.setattr(module.JointObjective, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain(how, store, run, threads=1)


def failures(run):
    return [row for row in read_jsonl(run / "events.jsonl") if row["event"] == "failed"]


@pytest.mark.parametrize("seed", range(6))
def test_ranks_and_stops_do_not_change_when_there_are_too_many(tmp_path, seed):
    ends = {
        ended_at(tmp_path / f"{ranks}-{stop}", seed, ranks, stop)
        for ranks in (1, 2, 4)
        for stop in (0, 1, 2, 3)
    }
    assert len(ends) == 1
    assert ends != {(None, None)}


def ended_at(folder, seed, n_ranks, stop):
    """(step, scans) after which a run ends that was stopped once, by the real loader and hook."""
    folder.mkdir()
    events = Events(folder, CPU)
    store = BrokenStore()
    for first, last in ((0, stop), (stop, 20)):
        loaders = [
            ScanLoader(store, 8 // n_ranks, seed, rank=rank, world_size=n_ranks)
            for rank in range(n_ranks)
        ]
        hooks = [UnreadableScans(store.scan_ids, one.max_unreadable, events) for one in loaders]
        for step in range(first, last):
            failed = 0
            for loader, hook in zip(loaders, hooks, strict=True):
                try:
                    hook(None, a_step(step + 1, loader.read(step)))
                except TrainingError:
                    failed += 1
            if failed:
                return step + 1, tuple(sorted(events.unreadable()))
    return None, None


class BrokenStore:
    scan_ids = tuple(f"c-{row}" for row in range(60))

    def __len__(self):
        return len(self.scan_ids)

    def read_hu(self, rows):
        if any(row % 11 == 3 for row in rows):
            raise StoreError("damaged")
        return np.zeros((len(rows), 1, 1, 1), np.int16)


def a_step(step, scans):
    return StepRecord(step, {}, {}, 0.0, True, 1, 1.0, 0.0, (SimpleNamespace(scans=scans),))


def test_a_scan_is_said_once_and_written_each_time(tmp_path, capsys):
    events = Events(tmp_path, CPU)
    lost = ScanBatch(np.zeros((1, 1, 1, 1)), (8,), ((0, 0),), (Unreadable(1, "damaged-scan", 8),))
    hook = UnreadableScans([f"c-{n}" for n in range(9)], 3, events)
    hook(None, a_step(1, lost))
    hook(None, a_step(2, lost))
    assert capsys.readouterr().err.count("scan c-1 cannot be read [damaged-scan]; c-8 came") == 1
    assert [(step, scan) for step, scan, _ in lost_scans(tmp_path)] == [(1, "c-1"), (2, "c-1")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingError("no", code="non-finite"), "non-finite"),
        (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError"),
        (RuntimeError("[gloo] Connection closed by peer"), "rank-lost"),
        (OSError(28, "No space left"), "disk-full"),
        (OSError(5, "Input/output error"), "OSError"),
    ],
)
def test_a_failure_is_noted_with_its_reason(tmp_path, error, reason):
    events = Events(tmp_path, CPU)
    events.failed(4, error)
    (row,) = read_jsonl(tmp_path / FILE)
    assert (row["event"], row["step"], row["reason"]) == ("failed", 4, reason)


def test_a_failure_that_cannot_be_noted_does_not_hide_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Events, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    Events(tmp_path, CPU).failed(4, TrainingError("no"))


def test_no_memory_left_is_noted_and_explained(tmp_path, monkeypatch):
    def after_step(self, momentum):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module.JointObjective, "after_step", after_step)
    with pytest.raises(TrainingError, match="no memory left"):
        pretrain(recipe(), make_store(tmp_path / "store"), tmp_path / "run", threads=1)
    assert [row["reason"] for row in failures(tmp_path / "run")] == ["out-of-memory"]


def test_a_call_that_is_refused_is_no_failure_of_the_run(tmp_path):
    pretrain(recipe(steps=2), make_store(tmp_path / "store"), tmp_path / "run", threads=1)
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError):
        pretrain(recipe(steps=2), other, tmp_path / "run", threads=1)
    assert not failures(tmp_path / "run")


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
