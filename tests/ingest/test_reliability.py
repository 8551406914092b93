"""Every row of the reliability table, by its odd series: each ends as the table says."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from headct.dicom.index import index_paths
from headct.dicom.pseudonym import Pseudonymizer
from headct.ingest.criteria import Criteria
from headct.ingest.pipeline import list_tasks
from headct.ingest.selection import by_study
from headct.ingest.series import Item, Settings, process
from headct.phantom.decoys import HeadSeries
from headct.phantom.odd import ODD, Odd
from headct.volume.preprocessing import PRESETS

ROWS = (
    "zero-byte, truncated header or pixels, element length lie, unknown transfer syntax, damaged",
    "notes, PDF, DICOMDIR, thumbnails, SR / PR / KO / RT objects, localizers",
    "no preamble, implicit VR, big endian, deflated, RLE, JPEG lossless, JPEG-LS, JPEG 2000",
    "pipes, link loops, odd / hostile file names, nested folders, one series over several folders",
    "missing position, orientation or pixel spacing; zero, absurd, non-numeric or non-orthogonal",
    "exact duplicates",
    "same UID or same position with other content",
    "one or more slices missing, non-uniform spacing",
    "gantry tilt, oblique, prone, feet first, caudal order, rows != columns, row spacing != column",
    "slices of different matrix, spacing or orientation; several reconstructions or time points",
    "two patients under one UID; empty PatientID",
    "MONOCHROME1, 8-bit or RGB copies, secondary capture, lossy",
    "rescale missing, slope 0, type not HU, per-slice rescale, intercept -1024 / -8192 / 0, signed",
    "padding (-2000, -3024, -32768, with or without PixelPaddingValue)",
    "HU implausible (air not near -1000, brain not near 20..50), constant image",
    "MR, PET, conflict of Modality and SOP class, other body part (by tag and by content), water",
    "contrast, bone kernel, thick reformats, cropped or partial head, infant, metal, post-mortem",
    "decompression bombs, 65535 x 65535, 2^31 frames, 3000 nested sequences",
    "NIfTI: NaN, 4-D, RGB, 8-bit, 0..1 scaled, truncated gz, header bomb, singular affine",
    "NIfTI: slope 0, big endian, any axis order; sform and qform disagree or both 0",
)
"""Rows of the table that the odd series stand for."""

SETTINGS = Settings(PRESETS["demo"], Criteria(), bytes(range(32)))


def run_ingest(folder: Path, spool: Path) -> list[Item]:
    """What ingest says to everything in a folder, without the store around it."""
    index = index_paths([folder], spool=spool)
    tasks = list_tasks(index, Pseudonymizer(SETTINGS.key))
    outcomes = [process(SETTINGS, task) for task in by_study(tasks, tasks, {})]
    return [item for outcome in outcomes for item in outcome.items]


def verdict(item: Item) -> str:
    """One text for what became of an item."""
    codes = ",".join(sorted(item["flags"])) or item["reason"] or ""
    return f"{item['status']}:{codes}" if codes else item["status"]


def test_every_row_of_the_table_has_odd_series() -> None:
    rows = {row: [odd.name for odd in ODD if row.startswith(odd.row)] for row in ROWS}
    assert all(rows.values())
    assert sum(map(len, rows.values())) == len(ODD) > 250


def test_names_of_odd_series_are_unique_in_a_row() -> None:
    assert len({(odd.row, odd.name) for odd in ODD}) == len(ODD)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd.row.split(',')[0]}: {odd.name}")
def test_an_odd_series_ends_as_the_table_says(
    odd: Odd, head_series: list[HeadSeries], tmp_path: Path
) -> None:
    odd.write(head_series[0], tmp_path / "in")
    (tmp_path / "spool").mkdir()
    items = run_ingest(tmp_path / "in", tmp_path / "spool")
    found = Counter(map(verdict, items))
    assert found in [
        Counter(verdicts) for verdicts in product(*(v.split("|") for v in odd.verdicts))
    ]
