"""A label table that a person or an importer made -> rows in the shared vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.labels.table import ABOUT, Key, Labelled, Row
from headct.labels.vocabulary import Value, shared_name
from headct.store.label_table import Rows, at_lines, finding_columns, finding_values, read_table
from headct.store.labels import ABOUT_SCAN

KEYS: tuple[Key, ...] = ("scan_id", "series_id", "study_id")
RAW = "study_uid"
PSEUDONYM = re.compile(r"p-[0-9a-f]{16}")


def holds_identifiers(path: Path) -> bool:
    """Whether a table names studies or patients by what only the site's key may turn into names."""
    header, rows = read_table(path)
    patients = [row["patient_id"] for row in rows if row.get("patient_id")]
    return _key_column(path, header) == RAW or not all(map(PSEUDONYM.fullmatch, patients))


def read_own(path: Path, names: Pseudonymizer | None, keep: Sequence[str] = ()) -> Labelled:
    """A label table with findings named by the vocabulary, and pseudonyms for identifiers.

    Args:
        path: CSV or Parquet with one of scan_id, series_id, study_id and study_uid, and a column
            per finding; patient_id, where the patients are not those of a store.
        names: needed where `holds_identifiers`.
        keep: findings that the vocabulary does not know, taken as they are.

    Raises:
        LabelError: no key, a finding that the vocabulary does not know, two columns of one
            finding, values other than 1, 0 and nothing, or two rows about one scan.
    """
    header, rows = read_table(path)
    column = _key_column(path, header)
    columns = finding_columns(header, ABOUT_SCAN)
    shared = [name if name in keep else shared_name(name) for name in columns]
    if len(set(shared)) < len(shared):
        twice = sorted({name for name in shared if shared.count(name) > 1})
        raise LabelError(
            f"{path.name} has two columns of the finding {', '.join(twice)}", remedy="keep one each"
        )
    _require_named_once(path, rows, column)
    made = []
    for line, (row, cells) in enumerate(
        zip(rows, finding_values(rows, columns).tolist(), strict=True), 2
    ):
        values: dict[str, Value] = {
            name: None if cell < 0 else cell for name, cell in zip(shared, cells, strict=True)
        }
        name = row[column] if column != RAW or names is None else names.study_id(row[column])
        patient = _patient(row.get("patient_id", ""), names)
        made.append(Row(name, patient, values, row.get("site", ""), row.get("split", ""), line))
    unused = [name for name in header if name in ABOUT_SCAN and name not in (column, *ABOUT)]
    notes = [f"{path.name}: not carried over: {', '.join(unused)}"] if unused else []
    return Labelled(_key_of(column), made, len(rows), notes)


def _key_column(path: Path, header: Sequence[str]) -> str:
    column = next((name for name in (*KEYS, RAW) if name in header), None)
    if column is None:
        raise LabelError(
            f"{path.name} has no column that says which scan a row is about",
            remedy=f"it needs one of {', '.join((*KEYS, RAW))}, and patient_id",
        )
    return column


def _key_of(column: str) -> Key:
    return next((key for key in KEYS if key == column), "study_id")


def _patient(text: str, names: Pseudonymizer | None) -> str:
    if names is None or not text or PSEUDONYM.fullmatch(text):
        return text
    return names.patient_id(patient_key(text))


def _require_named_once(path: Path, rows: Rows, column: str) -> None:
    first: dict[str, int] = {}
    blank, doubled = [], []
    for line, row in enumerate(rows, 2):
        if not (row[column] and row.get("patient_id", "-")):
            blank.append(line)
        elif first.setdefault(row[column], line) != line:
            doubled.append(line)
    faults = {f"without {column} or patient_id": blank}
    faults[f"with a {column} that an earlier row has"] = doubled
    for fault, lines in faults.items():
        if lines:
            raise LabelError(f"{path.name}: {at_lines(lines, 'row', fault)}", remedy="mend them")
