from __future__ import annotations

import os
import shutil
from pathlib import Path

import pydicom
import pytest

from headct.dicom.index import index_paths
from headct.dicom.reasons import Reason
from headct.dicom.series import StackPlan, plan_stacks
from headct.errors import Refusal, UsageError


def reasons(index) -> list[str]:
    return sorted(outcome.reason for outcome in index.outcomes)


def only_plan(index) -> StackPlan | Refusal:
    (plan,) = [plan for series in index.series for plan in plan_stacks(series)]
    return plan


def test_notes_pictures_and_tables_are_skipped_one_by_one(scan):
    folder = scan()
    (folder / "notes.txt").write_text("patient was restless")
    (folder / "report.pdf").write_bytes(b"%PDF-1.7 ...")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "thumb.png").write_bytes(b"\x89PNG\r\n")
    index = index_paths([folder])
    assert reasons(index) == [Reason.NOT_DICOM] * 4
    assert index.n_files == 16
    assert isinstance(only_plan(index), StackPlan)


def test_one_series_over_nested_folders_with_hostile_names(scan, tmp_path):
    files = sorted(scan().iterdir())
    for i, path in enumerate(files):
        name = os.fsdecode(b"\xff\xfe" + bytes([65 + i])) + " ;$(rm)\n'\"%s{0}"
        target = tmp_path / "odd" / f"d{i}" / "e" / name
        target.parent.mkdir(parents=True)
        shutil.move(path, target)
    plan = only_plan(index_paths([tmp_path / "odd"]))
    assert isinstance(plan, StackPlan)
    assert len(plan.headers) == 12


def test_link_loops_pipes_and_dangling_links_do_no_harm(scan):
    folder = scan()
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "copy.dcm").symlink_to(folder / "IM0003.dcm")
    os.link(folder / "IM0004.dcm", folder / "hard.dcm")
    os.mkfifo(folder / "pipe.dcm")
    index = index_paths([folder, folder])
    assert reasons(index) == [Reason.SPECIAL_FILE] * 3
    plan = only_plan(index)
    assert isinstance(plan, StackPlan)
    assert not plan.flags


def test_answer_does_not_depend_on_the_order_of_sources(scan):
    a, b = scan("a"), scan("b")
    forth, back = index_paths([a, b]), index_paths([b, a])
    assert {s.series_uid for s in forth.series} == {s.series_uid for s in back.series}
    assert {s.n_files for s in forth.series} == {12}


def test_an_empty_folder_is_an_empty_index(tmp_path):
    assert index_paths([tmp_path]).n_files == 0


def test_a_missing_source_is_wrong_use(tmp_path):
    with pytest.raises(UsageError):
        index_paths([tmp_path / "not-there"])


@pytest.mark.parametrize("length", [0, 100, 200, 400, 900, -1, -300])
def test_a_series_with_a_damaged_slice_is_refused_not_shortened(scan, length):
    folder = scan()
    victim = _last_slice(folder)
    data = victim.read_bytes()
    victim.write_bytes(data[:length])
    index = index_paths([folder])
    assert len(index.outcomes) == 1
    plan = only_plan(index)
    assert isinstance(plan, Refusal)
    assert plan.code == Reason.DAMAGED_MEMBER


def _last_slice(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])


def test_an_empty_file_of_another_name_hurts_no_series(scan):
    folder = scan()
    (folder / "export.log").touch()
    index = index_paths([folder])
    assert reasons(index) == [Reason.EMPTY_FILE]
    assert isinstance(only_plan(index), StackPlan)


def test_a_lying_element_length_is_found(scan):
    folder = scan()
    victim = _last_slice(folder)
    data = bytearray(victim.read_bytes())
    at = data.index(b"\x20\x00\x32\x00DS")
    data[at + 6 : at + 8] = b"\xff\xfe"
    victim.write_bytes(bytes(data))
    plan = only_plan(index_paths([folder]))
    assert isinstance(plan, Refusal)


def test_dicom_without_preamble_is_read(scan):
    folder = scan()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert isinstance(only_plan(index_paths([folder])), StackPlan)


def test_dicom_without_file_meta_is_read(scan):
    folder = scan()
    for path in folder.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\x08\x00\x08\x00CS") :])
    assert isinstance(only_plan(index_paths([folder])), StackPlan)


def test_thousands_of_nested_sequences_end_quickly(scan):
    folder = scan()
    victim = _last_slice(folder)
    data = victim.read_bytes()
    at = data.index(b"\x20\x00\x0d\x00UI")
    nest = b"\x19\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
    victim.write_bytes(data[:at] + nest + data[at:])
    plan = only_plan(index_paths([folder]))
    assert isinstance(plan, Refusal)


def test_objects_without_images_beside_a_series_are_skipped(scan):
    folder = scan()
    for i, (modality, number) in enumerate(
        {"SR": "88.11", "PR": "11.1", "RTPLAN": "481.5"}.items()
    ):
        dataset = pydicom.dcmread(folder / "IM0000.dcm")
        dataset.Modality = modality
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            f"1.2.840.10008.5.1.4.1.1.{number}"
        )
        del dataset.PixelData, dataset.Rows
        dataset.save_as(folder / f"object{i}")
    index = index_paths([folder])
    assert reasons(index) == [Reason.NOT_IMAGE] * 3
    assert isinstance(only_plan(index), StackPlan)


def test_nothing_identifying_is_shown(scan):
    folder = scan()
    (folder / "PLANTED-FOLDER.txt").write_text("x")
    index = index_paths([folder])
    shown = repr(index) + repr([plan_stacks(series) for series in index.series])
    assert "PLANTED" not in shown
    assert index.series[0].series_uid not in shown
