"""All odd inputs in one archive: each in its folder, and ingest says what is written of it."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from headct.errors import UsageError
from headct.phantom.archive import write_archive
from headct.phantom.odd import ODD
from headct.phantom.odd.plant import odd_series
from headct.phantom.profile import PhantomPreset, load_preset

from .test_reliability import run_ingest, verdict

PRESET = PhantomPreset(n_train=1, n_tune=0, n_test=0, n_external=0, faults="all", max_matrix=64)


def test_ingest_of_all_odd_inputs_comes_to_what_is_written(tmp_path: Path) -> None:
    """In one run: nothing that is odd about one input touches another."""
    archive = tmp_path / "archive"
    write_archive(PRESET.model_copy(update={"min_slice_mm": 6.0}), archive, 2)
    with (archive / "truth" / "planted.csv").open(encoding="utf-8") as handle:
        planted = [row for row in csv.DictReader(handle) if "/ODD" in row["path"]]
    folders = {archive / row["path"] for row in planted}
    assert len(folders) == len(ODD)
    everything = tmp_path / "odd"
    everything.mkdir()
    for folder in folders:
        folder.rename(everything / f"{folder.parent.name}-{folder.name}")
    (tmp_path / "spool").mkdir()
    found = Counter(map(verdict, run_ingest(everything, tmp_path / "spool")))
    choices = [
        [f"{row['status']}:{reason}".rstrip(":") for reason in row["reason"].split("|")]
        for row in planted
    ]
    sure = Counter(choice[0] for choice in choices if len(choice) == 1)
    either = product(*(choice for choice in choices if len(choice) > 1))
    assert found in [sure + Counter(chosen) for chosen in either]


@pytest.mark.parametrize("place", range(0, len(ODD), 12))
def test_an_odd_input_has_the_same_bytes_each_time(place: int, tmp_path: Path) -> None:
    series = odd_series(0, place)
    for name in ("a", "b"):
        ODD[place].write(series, tmp_path / name)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second
    assert first


def test_odd_inputs_are_of_different_patients() -> None:
    headers = [odd_series(seed, place).header for seed in (0, 1) for place in (0, 1)]
    assert len({header.series_uid for header in headers}) == 4
    assert replace(headers[0], series_uid="") != replace(headers[1], series_uid="")


def test_faults_are_planted_or_not_or_all_of_them() -> None:
    assert load_preset("tiny", ["faults=all"]).faults == "all"
    assert load_preset("tiny", ["faults=false"]).faults is False
    with pytest.raises(UsageError, match="faults"):
        load_preset("tiny", ["faults=some"])
