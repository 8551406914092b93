"""An archive becomes a store: every input answered, nothing lost, nothing told twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.errors import MismatchError, UsageError
from headct.ingest.criteria import Criteria
from headct.ingest.pipeline import ingest
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.volume.nifti import write_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series

DEMO = PRESETS["demo"]


def items_of(store: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(store / "items.jsonl"))


def by_series(store: Path) -> list[dict[str, Any]]:
    return [item for item in items_of(store) if item["series"]]


def require_same_scans(one: Path, other: Path) -> None:
    a, b = open_store(one), open_store(other)
    assert a.manifest.equals(b.manifest)
    np.testing.assert_array_equal(a.read_hu(range(len(a))), b.read_hu(range(len(b))))


@pytest.fixture(scope="module")
def store(archive: Path, key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    ingest([archive], out, DEMO, jobs=0, key_file=key_file, site="north")
    return out


def test_every_input_has_one_answer(store: Path, key_file: Path, head_series: list[Any]) -> None:
    states = Counter((item["status"], item["reason"]) for item in items_of(store))
    assert states.pop(("refused", "damaged-member")) == 1
    assert states.pop(("refused", "truncated")) == 1
    assert states.pop(("refused", "empty-file")) == 1
    assert states.pop(("skipped", "not-dicom")) == 1
    assert sum(states.values()) == 4
    assert {status for status, _ in states} <= {"accepted", "flagged"}
    names = Pseudonymizer(load_key(key_file))
    wanted = sorted(names.scan_id(series.header.series_uid) for series in head_series[:4])
    assert sorted(open_store(store).scan_ids) == wanted


def test_a_scan_on_which_headct_fails_does_not_stop_the_others(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headct.ingest import series

    n_calls = count()

    def fails_once(*args: Any) -> Any:
        if next(n_calls) == 0:
            raise IndexError("Secretname")
        return find_head(*args)

    find_head = series.find_head
    monkeypatch.setattr(series, "find_head", fails_once)
    ingest([archive], tmp_path / "store", DEMO, jobs=0, key_file=key_file)
    (failed,) = [i for i in items_of(tmp_path / "store") if "headct failed" in i["message"]]
    assert (failed["status"], failed["reason"]) == ("refused", "unreadable")
    assert "IndexError at series.py:" in failed["message"]
    assert "Secretname" not in failed["message"]
    assert len(open_store(tmp_path / "store")) == 3


def test_a_machine_without_memory_is_not_the_scans_fault(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("headct.ingest.series.find_head", fails)
    with pytest.raises(MemoryError):
        ingest([archive], tmp_path / "store", DEMO, jobs=0, key_file=key_file)


def test_manifest_says_what_the_scanner_did(store: Path, head_series: list[Any]) -> None:
    row = open_store(store).manifest.slice(0, 1).to_pylist()[0]
    header = head_series[0].header
    assert (row["manufacturer"], row["model"]) == (header.manufacturer, header.model)
    assert (row["kernel"], row["kvp"], row["sex"]) == (header.kernel, header.kvp, header.sex)
    assert (row["age_years"], row["site"]) == (header.age_years, "north")
    assert row["n_slices"] == len(head_series[0].hu)
    assert row["shape_zyx"] == list(head_series[0].hu.shape)


def test_no_identifier_goes_into_the_store(store: Path, head_series: list[Any]) -> None:
    header = head_series[0].header
    secrets = ["secret", header.study_uid[:-2], header.birth_date, header.accession]
    for path in store.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("latin-1").lower()
            found = [secret for secret in secrets if secret.lower() in text]
            assert not found, f"{found} in {path.name}"


def test_second_run_changes_nothing(store: Path, archive: Path, key_file: Path) -> None:
    def contents() -> dict[str, bytes]:
        files = (p for p in store.rglob("*") if p.is_file() and p.name != "summary.html")
        return {p.name: p.read_bytes() for p in files}

    before = contents()
    tally = ingest([archive], store, DEMO, jobs=0, key_file=key_file, site="north")
    assert contents() == before
    assert tally.n_seen == tally.n_known == len(items_of(store))


def test_layout_names_and_workers_change_nothing(
    store: Path, archive: Path, key_file: Path, tmp_path: Path
) -> None:
    """The same slices in one folder, renamed at random, on two processes."""
    slices = sorted(p for p in archive.rglob("IM*.dcm") if "Patient4" not in str(p))
    np.random.default_rng(1).shuffle(slices)
    for n, path in enumerate(slices):
        shutil.copy(path, tmp_path / f"{n:05d}")
    ingest([tmp_path], tmp_path / "store", DEMO, jobs=2, key_file=key_file, site="north")
    require_same_scans(tmp_path / "store", store)
    accepted = [i for i in by_series(store) if i["status"] != "refused"]
    assert by_series(tmp_path / "store") == accepted


def test_new_sources_are_added(archive: Path, key_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    ingest([archive / "Secretname_Patient0"], out, DEMO, jobs=0, key_file=key_file)
    first = open_store(out).scan_ids
    folders = [archive / "Secretname_Patient0", archive / "Secretname_Patient1"]
    tally = ingest(folders, out, DEMO, jobs=0, key_file=key_file)
    assert open_store(out).scan_ids[:1] == first
    assert (len(open_store(out)), tally.n_seen, tally.n_known) == (2, 2, 1)


def test_a_series_that_becomes_whole_is_taken(
    head_series: list[Any], write_series: Callable[..., list[Path]], key_file: Path, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "in", head_series[0])
    late = paths[5].read_bytes()
    paths[5].unlink()
    tally = ingest([tmp_path / "in"], tmp_path / "store", DEMO, jobs=0, key_file=key_file)
    assert tally.reasons["refused", "missing-slices"] == 1
    paths[5].write_bytes(late)
    tally = ingest([tmp_path / "in"], tmp_path / "store", DEMO, jobs=0, key_file=key_file)
    assert (tally.n_seen, tally.statuses["refused"]) == (1, 0)


def test_one_image_under_two_names_counts_once(
    archive: Path, key_file: Path, tmp_path: Path
) -> None:
    volume = read_series(archive / "Secretname_Patient0")
    write_nifti(tmp_path / "in" / "a.nii.gz", volume)
    shutil.copy(tmp_path / "in" / "a.nii.gz", tmp_path / "in" / "b.nii.gz")
    for _ in range(2):
        tally = ingest([tmp_path / "in"], tmp_path / "store", DEMO, jobs=0, key_file=key_file)
        assert tally.reasons["skipped", "twin"] == 1
        assert (tally.n_seen, len(open_store(tmp_path / "store"))) == (2, 1)


def test_nifti_and_dicom_of_one_scan_agree(archive: Path, key_file: Path, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", read_series(archive / "Secretname_Patient0"))
    one = ingest([tmp_path / "a.nii"], tmp_path / "nii", DEMO, jobs=0, key_file=key_file)
    folder = archive / "Secretname_Patient0"
    ingest([folder], tmp_path / "dicom", DEMO, jobs=0, key_file=key_file)
    assert one.statuses["refused"] == 0
    a, b = (open_store(tmp_path / name).read_hu([0]) for name in ("nii", "dicom"))
    np.testing.assert_array_equal(a, b)


def test_sources_without_scans_are_wrong_use(key_file: Path, tmp_path: Path) -> None:
    def run(source: Path) -> None:
        ingest([source], tmp_path / "store", DEMO, jobs=0, key_file=key_file)

    with pytest.raises(UsageError, match="does not exist"):
        run(tmp_path / "missing")
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="no DICOM and no NIfTI"):
        run(tmp_path / "in")
    (tmp_path / "in" / "note.txt").write_text("no scan here")
    with pytest.raises(UsageError, match="no DICOM and no NIfTI"):
        run(tmp_path / "in")
    assert not (tmp_path / "store").exists()


def test_a_store_keeps_to_its_grid_and_criteria(store: Path, archive: Path, key_file: Path) -> None:
    with pytest.raises(MismatchError, match="preprocessing"):
        ingest([archive], store, PRESETS["small"], jobs=0, key_file=key_file)
    with pytest.raises(UsageError, match="other criteria"):
        ingest([archive], store, DEMO, Criteria(thick_above_mm=3), jobs=0, key_file=key_file)


def test_summary_page_needs_nothing_else(store: Path) -> None:
    page = (store / "summary.html").read_text()
    assert "damaged-member" in page
    assert "http://" not in page
    assert "<script" not in page


STOPPED = """
import os, signal, sys
from functools import partial
from itertools import count
from pathlib import Path
import headct.ingest.pipeline as pipeline
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS

moment, stop, archive, out, key = int(sys.argv[1]), *sys.argv[2:]
count = 0

class Stopping(StoreWriter):
    def add(self, *args):
        global count
        count += 1
        if count == moment:
            os.kill(os.getpid(), getattr(signal, stop))
        super().add(*args)

if __name__ == "__main__":
    # a job that a shell started in the background ignores Ctrl-C, and so would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pipeline.StoreWriter = partial(Stopping, shard_scans=2)
    demo = PRESETS["demo"]
    pipeline.ingest([Path(archive)], Path(out), demo, jobs=1, key_file=Path(key), site="north")
"""


@pytest.mark.parametrize(("moment", "stop"), [(1, "SIGKILL"), (6, "SIGKILL"), (7, "SIGINT")])
def test_stopped_at_any_moment_the_same_command_goes_on(
    store: Path, archive: Path, key_file: Path, tmp_path: Path, moment: int, stop: str
) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    arguments = [str(moment), stop, str(archive), str(tmp_path / "store"), str(key_file)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], timeout=120, capture_output=True
    )
    assert done.returncode == -getattr(signal, stop), done.stderr.decode()
    ingest([archive], tmp_path / "store", DEMO, jobs=0, key_file=key_file, site="north")
    require_same_scans(tmp_path / "store", store)
    assert items_of(tmp_path / "store") == items_of(store)
    assert _no_worker_is_left(str(script))


def _no_worker_is_left(script: str) -> bool:
    """Workers end with their parent; give them a moment."""
    if not Path("/proc").is_dir():
        return True
    for _ in range(50):
        if not any(script in _command(pid) for pid in os.listdir("/proc") if pid.isdigit()):
            return True
        time.sleep(0.1)
    return False


def _command(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_text()
    except OSError:
        return ""


def test_the_stretched_cube_goes_into_a_store_as_hu_only(
    archive: Path, key_file: Path, tmp_path: Path
) -> None:
    ingest([archive], tmp_path / "store", PRESETS["fmct-hu"], jobs=0, key_file=key_file)
    store = open_store(tmp_path / "store")
    assert len(store) > 0
    volume = store[store.scan_ids[0]]
    assert volume.hu.shape == (96, 96, 96)
    assert volume.spacing_mm_zyx != PRESETS["fmct-hu"].spacing_mm_zyx, "the true size is kept"
    with pytest.raises(UsageError, match="no HU"):
        ingest([archive], tmp_path / "other", PRESETS["fmct"], jobs=0, key_file=key_file)
    assert not (tmp_path / "other").exists()
