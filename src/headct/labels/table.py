"""A label table as `headct labels` writes it: pseudonyms, splits by patient, 1, 0 or nothing."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from headct.atomic import replacing
from headct.errors import LabelError, UsageError
from headct.labels.lines import read_header
from headct.labels.vocabulary import Value, in_order
from headct.store.splits import SPLITS

Key = Literal["scan_id", "series_id", "study_id"]
ABOUT = ("patient_id", "site", "split")


@dataclass(frozen=True)
class Row:
    """One labelled scan, series or study; all names are pseudonyms."""

    name: str
    """Under the key of the table."""
    patient_id: str
    """All scans of a patient go into one split."""
    values: dict[str, Value]
    """1, 0 or None (unknown) per finding."""
    site: str = ""
    split: str = ""
    """Empty: drawn when the table is written."""
    line: int = 0
    """In the table that it was read from; 0 where it comes from several."""


@dataclass(frozen=True)
class Labelled:
    """What an importer found."""

    key: Key
    rows: list[Row]
    n_read: int
    """Rows of the source tables, all of them."""
    notes: list[str] = field(default_factory=list)
    """What a person should know: what has no label, no image, or was doubled."""


@dataclass(frozen=True)
class Splits:
    """Shares of patients in train, tune and test; all zero but test for an external site."""

    percent: tuple[int, int, int] = (60, 15, 25)
    seed: int = 0

    def of(self, patient_id: str) -> str:
        """The split of a patient: a function of name and seed alone, so that more patients
        never move one who is there already.
        """
        digest = hashlib.sha256(f"{self.seed}\0{patient_id}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * 100
        train, tune, _ = self.percent
        return SPLITS[(place >= train) + (place >= train + tune)]


def read_splits(text: str, seed: int = 0) -> Splits:
    """`60,15,25` (percent of patients in train, tune, test), or `external`: all in test.

    Raises:
        UsageError: not three whole numbers that sum to 100.
    """
    if text == "external":
        return Splits((0, 0, 100), seed)
    parts = text.split(",")
    if len(parts) == 3 and all(part.strip().isdecimal() for part in parts):
        train, tune, test = (int(part) for part in parts)
        if train + tune + test == 100:
            return Splits((train, tune, test), seed)
    raise UsageError(
        f"--split wants three percentages that sum to 100, not {text!r}",
        remedy="e.g. --split 80,10,10, or --split external for a set that is only tested on",
    )


def once_each(rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """Rows in the order of their names; a scan that comes twice with the same labels counts once.

    Raises:
        LabelError: one scan with two labels, or of two patients.
    """
    known: dict[str, Row] = {}
    n_doubled = n_contradicting = 0
    for row in rows:
        other = known.setdefault(row.name, row)
        n_doubled += other is not row
        n_contradicting += other.values != row.values or other.patient_id != row.patient_id
    if n_contradicting:
        raise LabelError(
            f"{n_contradicting} scans come twice, with different labels or patients",
            remedy="keep one of each, with the labels that are right",
        )
    notes = [f"{n_doubled} scans come twice with the same labels: once each"] if n_doubled else []
    return [known[name] for name in sorted(known)], notes


def with_splits(labelled: Labelled, splits: Splits | None, site: str) -> list[Row]:
    """Rows with their split and site.

    Args:
        labelled: rows may bring a split and a site of their own.
        splits: where patients are drawn; None keeps the rows' own.
        site: of rows that bring none.

    Raises:
        LabelError: no rows, a row without a patient or a split, or a patient in two.
    """
    if not labelled.rows:
        raise LabelError(
            "no scan of the label table was found",
            remedy="give the images, the store and the key that belong to this table",
        )
    nameless = sum(not row.patient_id for row in labelled.rows)
    if nameless:
        raise LabelError(
            f"{nameless} rows name no patient",
            remedy="add the column patient_id, or give --store: it knows them",
        )
    rows = [
        replace(row, site=row.site or site, split=_split_of(row, splits)) for row in labelled.rows
    ]
    bare = sum(row.split not in SPLITS for row in rows)
    if bare:
        raise LabelError(f"{bare} rows have no split", remedy="give --split, e.g. 60,15,25")
    pairs = Counter(patient for patient, _ in {(row.patient_id, row.split) for row in rows})
    crossing = sum(n > 1 for n in pairs.values())
    if crossing:
        raise LabelError(
            f"{crossing} patient{'s' * (crossing > 1)} in more than one split",
            remedy="draw the split anew by patient: --split 60,15,25",
        )
    return rows


def _split_of(row: Row, splits: Splits | None) -> str:
    return splits.of(row.patient_id) if splits else row.split


def write_table(out: Path, key: Key, rows: Sequence[Row]) -> None:
    """Write CSV, or Parquet where the name ends so; a label table that is there is replaced.

    Raises:
        UsageError: something that is no table of ours is in the way.
    """
    _require_ours(out)
    findings = in_order(name for row in rows for name in row.values)
    header = [key, *ABOUT, *findings]
    cells = [
        [row.name, row.patient_id, row.site, row.split, *(row.values.get(f) for f in findings)]
        for row in rows
    ]
    with replacing(out) as aside:
        if out.suffix == ".parquet":
            kinds = [pa.string()] * 4 + [pa.int8()] * len(findings)
            columns = [
                pa.array(column, kind)
                for column, kind in zip(zip(*cells, strict=True), kinds, strict=True)
            ]
            pq.write_table(pa.table(columns, names=header), aside)
        else:
            with aside.open("w", encoding="utf-8", newline="") as handle:
                csv.writer(handle, lineterminator="\n").writerows([header, *cells])


def _require_ours(out: Path) -> None:
    if out.is_dir():
        raise UsageError("--out is a folder", remedy="give a file, e.g. labels.csv")
    if out.exists() and tuple(read_header(out, "the file at --out")[1:4]) != ABOUT:
        raise UsageError(
            "--out exists and is no table that `headct labels` wrote", remedy="give another --out"
        )


def describe(rows: Sequence[Row]) -> list[str]:
    """How many rows and patients each split has, as lines of text."""
    lines = []
    for split in SPLITS:
        part = [row for row in rows if row.split == split]
        patients = len({row.patient_id for row in part})
        lines.append(f"{split}: {len(part)} rows, {patients} patients")
    return lines


def describe_findings(rows: Sequence[Row]) -> list[str]:
    """How many rows have each finding, as lines of text."""
    lines = []
    for name in in_order(name for row in rows for name in row.values):
        found = Counter(row.values.get(name) for row in rows)
        lines.append(f"{name}: {found[1]} present, {found[0]} absent, {found[None]} unknown")
    return lines
