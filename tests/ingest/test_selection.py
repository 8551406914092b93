"""One scan of each acquisition, whatever the order of its files; the others name their twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from headct.dicom.index import index_paths
from headct.dicom.pseudonym import Pseudonymizer
from headct.ingest.criteria import Criteria
from headct.ingest.pipeline import ingest
from headct.ingest.selection import group_by_acquisition, same_acquisition
from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import fresh, put, slices
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS

DEMO = PRESETS["demo"]
KEY = b"\x5a" * 32


def twin(series: HeadSeries, n: int, **header: Any) -> HeadSeries:
    return replace(series, header=replace(series.header, series_uid=f"1.2.3.{n}", **header))


@pytest.fixture
def study(head_series: list[HeadSeries], tmp_path: Path) -> Path:
    """Thin, thick, bone; one acquisition."""
    series = head_series[0]
    put(tmp_path / "in" / "thin", slices(twin(series, 1)))
    thick = fresh(slices(twin(series, 2))[::2], SliceThickness="12")
    put(tmp_path / "in" / "thick", thick)
    put(tmp_path / "in" / "bone", slices(twin(series, 3, kernel="H70h")))
    return tmp_path / "in"


def run(sources: list[Path], out: Path, key_file: Path, **criteria: Any) -> list[dict[str, Any]]:
    ingest(sources, out, DEMO, Criteria(**criteria), jobs=0, key_file=key_file)
    return list(read_jsonl(out / "items.jsonl"))


def scan_id(n: int) -> str:
    return Pseudonymizer(KEY).scan_id(f"1.2.3.{n}")


def series_id(n: int) -> str:
    return Pseudonymizer(KEY).series_id(f"1.2.3.{n}")


@pytest.mark.parametrize("order", list(permutations(["thin", "thick", "bone"]))[::2])
def test_the_thinnest_soft_one_is_taken_in_any_order(
    study: Path, key_file: Path, tmp_path: Path, order: tuple[str, ...]
) -> None:
    items = run([study / name for name in order], tmp_path / "store", key_file)
    assert open_store(tmp_path / "store").scan_ids == [scan_id(1)]
    others = {i["series"]: i for i in items if i["scan_id"] is None}
    assert set(others) == {series_id(2), series_id(3)}
    for item in others.values():
        assert (item["status"], item["reason"]) == ("skipped", "not-chosen")
        assert scan_id(1) in item["message"]


def test_the_closest_slice_distance_can_be_asked_for(
    study: Path, key_file: Path, tmp_path: Path
) -> None:
    run([study], tmp_path / "store", key_file, keep="closest", closest_mm=10)
    assert open_store(tmp_path / "store").scan_ids == [scan_id(2)]


def test_all_are_kept_under_one_name_of_the_scan(
    study: Path, key_file: Path, tmp_path: Path
) -> None:
    run([study], tmp_path / "store", key_file, keep="all")
    rows = open_store(tmp_path / "store").manifest.to_pylist()
    assert {row["scan_id"] for row in rows} == {scan_id(1), scan_id(2), scan_id(3)}
    assert {row["same_scan"] for row in rows} == {scan_id(1)}


def test_where_the_best_is_refused_its_twin_is_taken(
    study: Path, key_file: Path, tmp_path: Path
) -> None:
    next((study / "thin").iterdir()).unlink()
    items = run([study], tmp_path / "store", key_file)
    assert open_store(tmp_path / "store").scan_ids == [scan_id(2)]
    states = {item["series"]: item["reason"] for item in items}
    assert states[series_id(1)] == "missing-slices"
    assert states[series_id(3)] == "not-chosen"


def test_a_twin_that_comes_later_does_not_count_again(
    study: Path, key_file: Path, tmp_path: Path
) -> None:
    run([study / "thick"], tmp_path / "store", key_file)
    items = run([study], tmp_path / "store", key_file)
    assert open_store(tmp_path / "store").scan_ids == [scan_id(2)]
    assert [i["reason"] for i in items if i["series"] == series_id(1)] == ["not-chosen"]
    assert run([study], tmp_path / "store", key_file) == items


@pytest.mark.parametrize(
    ("changes", "n"),
    [
        ({}, 1),
        ({"AcquisitionTime": "201010"}, 2),
        ({"AcquisitionDate": "20300101"}, 2),
        ({"AcquisitionTime": "", "AcquisitionNumber": "7"}, 2),
        ({"AcquisitionTime": "", "ContrastBolusAgent": "IOHEXOL"}, 2),
        ({"AcquisitionTime": ""}, 1),
        ({"FrameOfReferenceUID": "1.9.9"}, 2),
        ({"IrradiationEventUID": "1.7.7"}, 1),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, 1),
        ({"KVP": "80"}, 1),
    ],
)
def test_what_makes_two_series_one_acquisition(
    head_series: list[HeadSeries], tmp_path: Path, changes: dict[str, Any], n: int
) -> None:
    put(tmp_path / "a", slices(twin(head_series[0], 1)))
    put(tmp_path / "b", fresh(slices(twin(head_series[0], 2)), **changes))
    assert groups_of(tmp_path) == n


def groups_of(folder: Path) -> int:
    from headct.dicom.series import plan_stacks
    from headct.ingest.selection import Candidate
    from headct.ingest.series import Task

    plans = [plan for series in index_paths([folder]).series for plan in plan_stacks(series)]
    found = [Candidate(Task("", Path(), 1), plan, "") for plan in plans]
    return len(group_by_acquisition(found))


@pytest.mark.parametrize(
    "odd",
    [
        {"acquisition_time": "\u00b201010"},
        {"acquisition_time": "1010nan"},
        {"acquisition_time": "", "acquisition_date": "9" * 400},
    ],
)
def test_a_time_that_is_none_is_not_known_and_stops_nothing(
    head_series: list[HeadSeries], tmp_path: Path, odd: dict[str, str]
) -> None:
    from headct.dicom.series import StackPlan, plan_stacks

    put(tmp_path, slices(twin(head_series[0], 1)))
    (plan,) = plan_stacks(index_paths([tmp_path]).series[0])
    assert isinstance(plan, StackPlan)
    strange = replace(plan, headers=tuple(replace(header, **odd) for header in plan.headers))
    assert same_acquisition(plan, strange)


def test_irradiation_events_go_before_everything(
    head_series: list[HeadSeries], tmp_path: Path
) -> None:
    a = slices(twin(head_series[0], 1))
    b = slices(twin(head_series[0], 2))
    put(tmp_path / "a", fresh(a, IrradiationEventUID="1.7"))
    put(tmp_path / "b", fresh(b, IrradiationEventUID="1.8"))
    assert groups_of(tmp_path) == 2


def test_neck_and_head_of_one_acquisition_are_two(
    head_series: list[HeadSeries], tmp_path: Path
) -> None:
    images = slices(twin(head_series[0], 1))
    put(tmp_path / "a", images[:16])
    put(tmp_path / "b", fresh(images[14:], SeriesInstanceUID="1.2.3.2"))
    assert groups_of(tmp_path) == 2


def test_scans_of_two_studies_are_never_twins(
    head_series: list[HeadSeries],
    write_series: Callable[..., list[Path]],
    key_file: Path,
    tmp_path: Path,
) -> None:
    for n in (0, 1):
        write_series(tmp_path / "in" / str(n), head_series[n])
    run([tmp_path / "in"], tmp_path / "store", key_file)
    assert len(open_store(tmp_path / "store")) == 2
