"""Criteria as a table: study description, tube voltage and kernel of what is wanted, in CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from headct.config import Config
from headct.dicom.header import Header
from headct.errors import UsageError
from headct.ingest.descriptions import plain

TABLE_SUFFIXES = (".csv", ".tsv")
COLUMNS = {
    "studydescription": "study_description",
    "description": "study_description",
    "kvp": "kvp",
    "kv": "kvp",
    "tubevoltage": "kvp",
    "convolutionkernel": "kernel",
    "kernel": "kernel",
}
"""Names of the columns without spaces and signs, and what they mean."""
KVP_POSSIBLE = (20.0, 300.0)
SAME_KVP = 0.5


class TableRow(Config):
    """One combination that is wanted; what is empty fits everything."""

    study_description: str = ""
    """Whole text; `*` and `?` stand for any text and any letter."""
    kvp: float | None = None
    """Tube voltage, kV."""
    kernel: str = ""
    """Whole name, or its first part; `*` and `?` as above."""


def read_table(path: Path) -> tuple[TableRow, ...]:
    """Rows of a criteria table.

    Args:
        path: CSV or TSV with the columns study description, kVp and convolution kernel, in any
            order, case and spelling of the heads; at least one of them.

    Raises:
        UsageError: no such file, unknown columns, or bad values, with the number of each row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            lines = list(csv.reader(handle, delimiter=_delimiter(path)))
    except FileNotFoundError:
        raise UsageError("no such criteria table", remedy="check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError("the criteria table is no readable CSV file", remedy="mend it") from error
    columns = _columns(lines[0] if lines else [])
    rows: list[TableRow] = []
    faults: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line]
        if not any(cells):
            continue
        try:
            rows.append(_row(columns, cells))
        except ValueError as error:
            faults.append(f"  row {number}: {error}")
    if faults:
        listed = "\n".join(faults[:20])
        raise UsageError(f"the criteria table has faults:\n{listed}", remedy="correct these rows")
    if not rows:
        raise UsageError("the criteria table has no rows", remedy="add what is wanted")
    return tuple(rows)


def fits_table(header: Header, table: Iterable[TableRow]) -> bool:
    """Whether a row of the table fits; capitals, accents and outer spaces do not matter."""
    description, kernel = plain(header.study_description), plain(header.kernel)
    kernels = (kernel, kernel.split("\\")[0].strip())
    return any(
        _fits(row.study_description, (description,))
        and _fits(row.kernel, kernels)
        and (row.kvp is None or abs((header.kvp or 0.0) - row.kvp) <= SAME_KVP)
        for row in table
    )


def _fits(wanted: str, texts: tuple[str, ...]) -> bool:
    if not wanted:
        return True
    pattern = plain(wanted).replace("[", "[[]")
    return any(fnmatchcase(text, pattern) for text in texts)


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        head = handle.readline()
    return max(",;\t", key=head.count)


def _columns(heads: list[str]) -> list[str]:
    names = [COLUMNS.get(re.sub(r"[^a-z]", "", head.lower()), "") for head in heads]
    unknown = [head for head, name in zip(heads, names, strict=True) if not name]
    if not heads or unknown or len(set(names)) < len(names):
        listed = ", ".join(unknown) or "none, or one twice"
        raise UsageError(
            f"row 1: the criteria table has columns that are not known: {listed}",
            remedy="name them: study description, kVp, convolution kernel",
        )
    return names


def _row(columns: list[str], cells: list[str]) -> TableRow:
    if len(cells) > len(columns):
        raise ValueError(f"{len(cells)} cells, but {len(columns)} columns")
    values: dict[str, str] = dict(zip(columns, cells, strict=False))
    kvp = values.pop("kvp", "")
    return TableRow(**values, kvp=_kvp(kvp) if kvp and kvp != "*" else None)


def _kvp(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*(kvp?)?", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"kVp is not a number: {text!r}")
    value = float(found[1].replace(",", "."))
    if not KVP_POSSIBLE[0] <= value <= KVP_POSSIBLE[1]:
        raise ValueError(f"kVp of {value:g} is no tube voltage")
    return value
