"""The archive on disk: whole, the same every time, with its truth at the right place."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from headct.cli import phantom as cli
from headct.config import to_toml
from headct.errors import UsageError
from headct.phantom import archive as archive_module
from headct.phantom.archive import JOURNAL, write_archive
from headct.phantom.outputs import Made
from headct.phantom.plan import archive_sites, plan_studies, study_uid
from headct.phantom.profile import FINDINGS, PhantomPreset, Prevalence
from headct.phantom.scan import draw_scan
from headct.volume.read import read_series

ONLY_IPH = Prevalence(**dict.fromkeys(Prevalence.model_fields, 0.0) | {"iph": 1.0})
PRESET = PhantomPreset(
    seed=1,
    n_train=4,
    n_tune=1,
    n_test=2,
    n_external=3,
    n_pool=3,
    repeat_fraction=0.5,
    unknown_fraction=0.2,
    faults=False,
    max_matrix=64,
    min_slice_mm=6,
    severity=2.0,
    prevalence=ONLY_IPH,
)

Row = dict[str, str]


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the record of the run, which holds the time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_same_tree(one: Path, other: Path) -> None:
    files, others = tree(one), tree(other)
    assert files.keys() == others.keys()
    assert [path for path, content in files.items() if content != others[path]] == []


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "archive"
    write_archive(PRESET, folder, n_workers=1)
    return folder


@pytest.fixture(scope="module")
def labels(archive: Path) -> list[Row]:
    with (archive / "labels.csv").open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_counts_are_those_of_the_preset(labels: list[Row]) -> None:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in labels:
        counts[row["site"], row["split"]] += 1
    assert counts == {
        ("hospital-a", "train"): 4,
        ("hospital-a", "tune"): 1,
        ("hospital-a", "test"): 2,
        ("hospital-b", "test"): 3,
    }


def test_a_patient_is_in_one_split_and_some_come_twice(labels: list[Row]) -> None:
    places = defaultdict(set)
    for row in labels:
        places[row["patient_id"]].add((row["site"], row["split"]))
    assert all(len(found) == 1 for found in places.values())
    assert len(places) < len(labels) == len({row["study_uid"] for row in labels})


def test_some_labels_are_unknown_and_the_others_binary(labels: list[Row]) -> None:
    values = [row[finding] for row in labels for finding in FINDINGS]
    assert set(values) == {"0", "1", ""}
    first = {row["patient_id"]: row["iph"] for row in reversed(labels)}
    assert set(first.values()) <= {"1", ""}, "what is resorbed later was there at first"


def test_masks_lie_on_the_lesion_on_the_side_that_truth_says(archive: Path) -> None:
    truth = pq.read_table(archive / "truth" / "findings.parquet").to_pylist()
    bleeds = [row for row in truth if row["finding"] == "iph"]
    assert {row["study_uid"] for row in bleeds} == with_blood_left()
    assert len(bleeds) > 7
    for row in bleeds:
        volume = read_series(study_folder(archive, row["study_uid"]))
        with np.load(archive / "truth" / "masks" / f"{row['study_uid']}.npz") as saved:
            mask, affine = saved["iph"], saved["affine_zyx"]
        where = np.c_[np.argwhere(mask), np.ones(mask.sum())].T
        index = (np.linalg.inv(volume.affine_zyx) @ affine @ where)[:3]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        z, y, x = np.rint(index).astype(int)
        assert abs(np.median(volume.hu[z, y, x]) - row["hu"]) < 8
        right = (affine @ where)[2].mean()
        if row["side"] != "both":
            assert row["side"] == ("right" if right > 0 else "left")
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        assert mask.sum() * voxel_ml == pytest.approx(row["volume_ml"], rel=0.3, abs=1)


def with_blood_left() -> set[str]:
    """Studies in which the haematoma is not resorbed yet."""
    sites = archive_sites(PRESET)
    found = set()
    for study in plan_studies(PRESET):
        spec = draw_scan(PRESET, sites[study.site_index], 1, study.patient.number, study.scan)
        if spec.lesions:
            found.add(study_uid(1, study))
    return found


def test_scans_say_when_they_were_made(archive: Path, labels: list[Row]) -> None:
    scans = pq.read_table(archive / "truth" / "scans.parquet").to_pylist()
    assert [row["study_uid"] for row in scans] == [row["study_uid"] for row in labels]
    days = {(row["patient_id"], row["scan"]): row["days"] for row in scans}
    assert all((day == 0) == (scan == 0) for (_, scan), day in days.items())
    assert max(scan for _, scan in days) > 0
    dates = {}
    for row in scans:
        first = next(
            p for p in sorted(study_folder(archive, row["study_uid"]).rglob("*")) if p.is_file()
        )
        dates[row["patient_id"], row["scan"]] = date.fromisoformat(str(dcmread(first).StudyDate))
    for (patient, scan), day in days.items():
        assert (dates[patient, scan] - dates[patient, 0]).days == day
    for row in scans:
        assert 0.15 < row["evans_index"] < 0.5
        assert 20 < row["csf_ml"] < 600
        assert 3 < row["ventricles_ml"] < 250


def study_folder(archive: Path, study_uid: str) -> Path:
    for folder in archive.glob("dicom/*/*"):
        first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        if dcmread(first, stop_before_pixels=True).StudyInstanceUID == study_uid:
            return folder
    raise AssertionError("no such study")


def test_series_of_an_archive_are_valid_by_dciodvfy(archive: Path) -> None:
    """At both sites; the Debian build of dciodvfy cannot inflate: no deflated files."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    checked = 0
    for study in sorted((archive / "dicom").glob("*/*")):
        file = min(path for path in study.rglob("*") if path.is_file())
        if dcmread(file).file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
            answer = subprocess.run(
                ["dciodvfy", "-new", file], capture_output=True, text=True, check=False
            )
            assert (answer.stdout + answer.stderr).split() == ["CTImage"], file
            checked += 1
    assert checked >= 9


def test_no_path_and_no_pool_row_names_a_patient(archive: Path, labels: list[Row]) -> None:
    names = {row["patient_id"] for row in labels} | {row["study_uid"] for row in labels}
    paths = [p.relative_to(archive).as_posix() for p in archive.glob("dicom/**/*")]
    assert not [path for path in paths for name in names if name in path]
    pool = pq.read_table(archive / "pool" / "manifest.parquet")
    assert all(name.startswith("p-") for name in pool["patient_id"].to_pylist())


def test_workers_do_not_change_a_byte(archive: Path, tmp_path: Path) -> None:
    write_archive(PRESET, tmp_path / "other", n_workers=2)
    assert_same_tree(tmp_path / "other", archive)


def test_a_second_run_changes_nothing(archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    write_archive(PRESET, archive, n_workers=1)
    after = {path: path.stat().st_mtime_ns for path in archive.rglob("*") if path.is_file()}
    # the store keeps its manifest as it is, or writes the same again
    assert {p for p in before if before[p] != after.get(p)} <= set((archive / "pool").rglob("*"))


def test_a_torn_journal_line_is_made_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make_study = archive_module.make_study

    def stopping(job: archive_module.StudyJob) -> Made:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(job.study.index)
        return make_study(job)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(archive_module, "make_study", stopping)
        with pytest.raises(KeyboardInterrupt):
            write_archive(PRESET, folder, n_workers=1)
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    write_archive(PRESET, folder, n_workers=1)
    assert_same_tree(folder, archive)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_in_the_middle_no_worker_stays_and_the_rest_follows(
    archive: Path, tmp_path: Path
) -> None:
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "killed"
    recipe.write_text(to_toml(PRESET), encoding="utf-8")
    script = (
        "from pathlib import Path; from headct.cli.phantom import phantom\n"
        "if __name__ == '__main__':\n"
        f"    phantom(Path({str(folder)!r}), Path({str(recipe)!r}), jobs=2)\n"
    )
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    process = subprocess.Popen([sys.executable, tmp_path / "run.py"], start_new_session=True)
    deadline = time.monotonic() + 180
    while not _lines(folder / JOURNAL) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < _lines(folder / JOURNAL) < 10
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(process.pid), "workers end with their parent"
    write_archive(PRESET, folder, n_workers=1)
    assert_same_tree(folder, archive)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_another_recipe_into_the_same_folder_is_an_error(archive: Path) -> None:
    with pytest.raises(UsageError, match="another recipe or seed") as error:
        write_archive(PRESET.model_copy(update={"seed": 2}), archive, n_workers=1)
    assert "--out" in error.value.remedy


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="other things"):
        write_archive(PRESET, tmp_path, n_workers=1)
    with pytest.raises(UsageError, match="is a file"):
        write_archive(PRESET, tmp_path / "thesis.txt", n_workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, "one of them"),
        ({"preset": "demo", "recipe": Path("x.toml")}, "one of them"),
        ({"preset": "enormous"}, "no recipe file or built-in recipe"),
        ({"preset": "demo", "overrides": ["n_trian=3"]}, "did you mean n_train"),
        ({"preset": "demo", "overrides": ["prevalence.edh=1.5"]}, "1.5 is above 1, the most"),
        (
            {"preset": "demo", "overrides": ["prevalence.flu=0.1"]},
            "unknown key; there are: edh, sdh,",
        ),
        ({"preset": "demo", "overrides": ["output=png"]}, "'dicom', 'nifti' or 'store'"),
        ({"preset": "demo", "overrides": ["n_pool=-1"]}, "-1 is below 0, the least"),
        ({"preset": "demo", "overrides": ['sites=["hospital-z"]']}, "hospital-z"),
    ],
)
def test_bad_recipes_say_what_is_wrong_before_anything_is_written(
    arguments: dict[str, object], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=fault):
        cli.phantom(tmp_path / "out", jobs=1, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
