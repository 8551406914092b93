"""What the command line does when something goes wrong."""

from __future__ import annotations

import errno

import pytest
import typer

from headct.cli import app as cli
from headct.errors import Refusal, UsageError


def run(monkeypatch, capsys, error):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("sys.argv", ["headct", "fail"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr().err


def test_wrong_use_is_two_with_code_and_remedy(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, UsageError("no such [store]", remedy="make one"))
    assert code == 2
    assert "error [usage]: no such [store]" in shown
    assert "what to do: make one" in shown


def test_a_failure_is_one_and_names_its_reason(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, Refusal("8 slices", code="too-few-slices"))
    assert (code, "[too-few-slices]" in shown) == (1, True)


def test_a_full_disk_says_so(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left"))
    assert code == 1
    assert "[disk-full]" in shown


def test_a_file_where_the_store_should_be_is_said(monkeypatch, capsys, tmp_path):
    for name in ("scan.nii", "taken"):
        (tmp_path / name).touch()
    source, out, key = (str(tmp_path / name) for name in ("scan.nii", "taken", "key"))
    arguments = ["headct", "ingest", source, "--out", out, "--key", key, "--jobs", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr().err
    assert (stop.value.code, "[file-access]" in shown) == (1, True)
    assert "no folder" in shown


def test_an_interrupt_says_that_the_command_goes_on(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, KeyboardInterrupt())
    assert code == 130
    assert "give the same command again" in shown


def test_the_text_of_an_unexpected_error_is_withheld(monkeypatch, capsys):
    code, shown = run(monkeypatch, capsys, ValueError("DOE^JANE 1931-01-01"))
    assert code == 1
    assert "DOE" not in shown
    assert "ValueError at app.py:" in shown


def test_unknown_verbs_and_flags_are_wrong_use(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["headct", "ingest", "--no-such-flag"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "no-such-flag" in capsys.readouterr().err
