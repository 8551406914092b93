from __future__ import annotations

import re
import stat

import pytest

from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.errors import UsageError


def test_names_depend_on_key_kind_and_text():
    ours, theirs = Pseudonymizer(b"a" * 32), Pseudonymizer(b"b" * 32)
    names = {
        ours.patient_id("1.2"),
        ours.study_id("1.2"),
        ours.series_id("1.2"),
        ours.scan_id("1.2"),
        ours.scan_id("1.2", "part"),
        ours.source_id("1.2"),
        theirs.patient_id("1.2"),
        ours.patient_id("1.3"),
    }
    assert len({name[2:] for name in names}) == 8
    assert all(re.fullmatch(r"[a-z]-[0-9a-f]{16}", name) for name in names)
    assert ours.patient_id("1.2") == Pseudonymizer(b"a" * 32).patient_id("1.2")


def test_a_hostile_file_name_gets_a_name_too():
    assert Pseudonymizer(b"a" * 32).source_id("scan\udcff\n.dcm").startswith("f-")


def test_key_is_made_once_for_its_owner_alone(tmp_path, capsys):
    path = tmp_path / "config" / "key"
    key = load_key(path)
    assert "new key" in capsys.readouterr().err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert capsys.readouterr().err == ""
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_key_file_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADCT_KEY_FILE", str(tmp_path / "key"))
    assert load_key() == load_key(tmp_path / "key")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(UsageError, match="others"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["not hex", "00ff", ""])
def test_a_file_that_is_no_key_is_refused(tmp_path, text):
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError):
        load_key(path)
