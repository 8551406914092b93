"""A damaged file in a folder of many series refuses only the series that it is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from headct.dicom.index import index_paths
from headct.dicom.reasons import Reason
from headct.dicom.series import StackPlan, plan_stacks
from headct.errors import Refusal

STUDY_UID, SERIES_UID, IMAGE_UID = b"\x20\x00\x0d\x00", b"\x20\x00\x0e\x00", b"\x08\x00\x18\x00"
N_SERIES = 4


@pytest.fixture
def flat(scan: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Path]]:
    """`flat(name)`: four series of 12 slices in one folder, named by `name(series, slice)`."""

    def write(name: Callable[[int, int], str], *, one_study: bool = False) -> list[Path]:
        out = tmp_path / "flat"
        out.mkdir()
        paths = []
        for n in range(N_SERIES):

            def edit(image: pydicom.Dataset, _: int, n: int = n) -> None:
                image.SeriesDescription = f"Series {n}"
                image.StudyInstanceUID = "1.2.3.4" if one_study else f"1.2.3.4.{n}"

            files = scan(f"s{n}", edit=edit, series_uid=f"1.2.3.5.{n}").iterdir()
            by_place = sorted(
                files, key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2])
            )
            for z, file in enumerate(by_place):
                paths.append(file.rename(out / name(n, z)))
        return paths

    return write


def outcome(folder: Path) -> dict[int, str]:
    """Series number -> code of the refusal, `possible-loss`, or nothing."""
    found = {}
    for series in index_paths([folder]).series:
        (plan,) = plan_stacks(series)
        n = int(series.series_uid.rsplit(".")[-1])
        if isinstance(plan, Refusal):
            found[n] = plan.code
        else:
            found[n] = "possible-loss" if Reason.POSSIBLE_LOSS in plan.flags else ""
    return found


def cut(path: Path, before: bytes | None) -> None:
    """End a file just before an element of its data set, or make it empty."""
    data = path.read_bytes()
    path.write_bytes(b"" if before is None else data[: data.index(before, 400) + 6])


def in_turn(n: int, z: int) -> str:
    return f"IM{n * 12 + z:05d}.dcm"


def mixed(n: int, z: int) -> str:
    return f"IM{z * N_SERIES + n:05d}.dcm"


def as_hash(n: int, z: int) -> str:
    return f"ID_{hash((n, z)) & 0xFFFFFFFFF:09x}.dcm"


@pytest.mark.parametrize("name", [in_turn, mixed, as_hash])
def test_a_file_that_still_names_its_series_refuses_that_one(flat, name) -> None:
    paths = flat(name, one_study=True)
    cut(paths[17], b"\x28\x00\x30\x00")
    assert outcome(paths[0].parent) == {0: "", 1: "damaged-member", 2: "", 3: ""}


@pytest.mark.parametrize("before", [SERIES_UID, STUDY_UID, b"\x18\x00", None])
def test_numbers_within_the_range_of_one_series_show_it(flat, before) -> None:
    paths = flat(in_turn, one_study=True)
    cut(paths[17], before)
    assert outcome(paths[0].parent) == {0: "", 1: "damaged-member", 2: "", 3: ""}


def test_between_two_series_it_may_be_of_either(flat) -> None:
    paths = flat(in_turn, one_study=True)
    cut(paths[12], None)
    found = outcome(paths[0].parent)
    assert found == {0: "possible-loss", 1: "possible-loss", 2: "", 3: ""}


def test_what_the_file_said_before_it_broke_off_excludes_the_others(flat) -> None:
    paths = flat(mixed)
    cut(paths[12], SERIES_UID)  # the first slice of the second series: no gap would show it
    assert outcome(paths[0].parent) == {0: "", 1: "damaged-member", 2: "", 3: ""}


def test_where_it_could_be_of_any_only_a_gap_refuses(flat) -> None:
    paths = flat(mixed, one_study=True)
    cut(paths[17], None)
    found = outcome(paths[0].parent)
    assert found.pop(1) == "missing-slices"
    assert set(found.values()) == {"possible-loss"}


def test_names_without_a_common_pattern_show_nothing(flat) -> None:
    paths = flat(as_hash)
    cut(paths[17], None)
    index = index_paths([paths[0].parent])
    assert [o.reason for o in index.outcomes] == [Reason.EMPTY_FILE]
    assert outcome(paths[0].parent) == {0: "", 1: "missing-slices", 2: "", 3: ""}


def test_a_damaged_copy_of_a_whole_slice_takes_nothing_away(flat) -> None:
    paths = flat(in_turn)
    copy = paths[0].with_name("IM00099.dcm")
    copy.write_bytes(paths[40].read_bytes())
    cut(copy, b"\x28\x00\x30\x00")
    data = copy.read_bytes()
    copy.write_bytes(data[: data.index(SERIES_UID, 400) + 4])
    assert set(outcome(paths[0].parent).values()) == {""}


def test_in_a_folder_of_its_own_a_series_is_refused_for_any_file_named_alike(scan) -> None:
    folder = scan("one")
    (folder / "IM0099.dcm").touch()
    (series,) = index_paths([folder]).series
    (plan,) = plan_stacks(series)
    assert isinstance(plan, Refusal)
    assert plan.code == Reason.DAMAGED_MEMBER
    (folder / "IM0099.dcm").unlink()
    (folder / "export.dcm").touch()
    (series,) = index_paths([folder]).series
    assert isinstance(plan_stacks(series)[0], StackPlan)
