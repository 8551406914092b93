from __future__ import annotations

import json

import pytest

from headct import atomic
from headct.config import Config
from headct.progress import tracking
from headct.run import append_jsonl, read_jsonl, without_paths, write_run_record


class Recipe(Config):
    steps: int = 3


def test_run_record_names_versions_seed_and_commit(tmp_path):
    write_run_record(tmp_path / "run", Recipe(), seed=7, verb="pretrain")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["seed"] == 7
    assert record["packages"]["torch"].startswith("2.")
    assert "steps = 3" in (tmp_path / "run" / "config.toml").read_text()


def test_paths_of_an_archive_do_not_reach_the_record(tmp_path):
    (tmp_path / "DOE^JANE").mkdir()
    kept = without_paths(
        [str(tmp_path / "DOE^JANE"), "--set", "steps=3", "--out", "a/b", "--key=DOE"]
    )
    assert kept == ["PATH", "--set", "steps=3", "--out", "PATH", "--key=PATH"]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}], durable=True)
    with path.open("a") as handle:
        handle.write('{"step": 3')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def write_half() -> None:
        with atomic.replacing(path) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_progress_off_a_terminal_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("headct.progress.PLAIN_LINE_EVERY_S", 0.0)
    with tracking("ingest", total=4) as tracker:
        tracker.advance(2, "1 refused")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("ingest: 2/4 scans, ")
    assert lines[0].endswith("left, 1 refused")
    assert lines[-1].startswith("ingest: 2 scans in ")


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    def make(text: str, fails: bool) -> None:
        with atomic.replacing_folder(tmp_path / "task") as aside:
            (aside / "a.txt").write_text(text)
            if fails:
                raise RuntimeError

    make("one", fails=False)
    with pytest.raises(RuntimeError):
        make("half", fails=True)
    assert (tmp_path / "task" / "a.txt").read_text() == "one"
    make("two", fails=False)
    assert (tmp_path / "task" / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["task"]
