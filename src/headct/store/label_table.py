"""A label table as it is on disk: CSV or Parquet, one row per scan, study or patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headct.errors import LabelError

UNKNOWN = -1
VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0}
VALUES |= dict.fromkeys(("", "-1", "-1.0", "nan", "na", "none", "null"), UNKNOWN)
SHOWN_LINES = 5

Rows = list[dict[str, str]]


def read_table(path: Path) -> tuple[list[str], Rows]:
    """Column names and rows as stripped text; nothing is the empty text.

    Raises:
        LabelError: no such file, not CSV (UTF-8) or Parquet, no rows, ragged rows, unclear header.
    """
    if not path.is_file():
        raise LabelError(
            f"there is no label table {path.name!r}", remedy="give a CSV or Parquet file"
        )
    header, rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if len(set(header)) < len(header) or not all(header):
        raise LabelError(
            "the label table has columns without a name, or two of one name",
            remedy="give each column its own name",
        )
    if not rows:
        raise LabelError("the label table has no rows", remedy="give one row per scan or study")
    return header, rows


def _read_csv(path: Path) -> tuple[list[str], Rows]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(
            "the label table is not UTF-8 text", remedy="save it as CSV UTF-8"
        ) from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    while lines and not any(lines[-1]):
        lines.pop()
    if not lines:
        raise LabelError("the label table is empty", remedy="give a header and one row per scan")
    header = [name.strip() for name in lines[0]]
    blank = [n for n, line in enumerate(lines[1:], 2) if not any(line)]
    if blank:
        raise LabelError(at_lines(blank, "row", "with nothing in it"), remedy="take them out")
    bad = [n for n, line in enumerate(lines[1:], 2) if len(line) != len(header)]
    if bad:
        raise LabelError(
            at_lines(bad, "row", "with more or fewer fields than the header"),
            remedy="mend these rows",
        )
    return header, [
        {name: value.strip() for name, value in zip(header, line, strict=True)}
        for line in lines[1:]
    ]


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise LabelError("the label table is not a Parquet file", remedy="check it") from error
    rows = table.to_pylist()
    return table.column_names, [
        {name: "" if value is None else str(value).strip() for name, value in row.items()}
        for row in rows
    ]


def finding_columns(
    header: list[str], about_scan: Sequence[str], wanted: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The columns that are findings: those asked for, or all that are not about the scan."""
    findings = tuple(name for name in header if name not in about_scan)
    if not findings:
        raise LabelError(
            "the label table has no findings", remedy="add a column of 1, 0 or nothing"
        )
    absent = [name for name in wanted or () if name not in findings]
    if absent:
        raise LabelError(
            f"the label table has no column for {', '.join(absent)}",
            remedy=f"it has: {', '.join(findings)}",
        )
    return findings if wanted is None else tuple(wanted)


def finding_values(rows: Rows, findings: tuple[str, ...]) -> np.ndarray:
    """int8 [n f]: 1 present, 0 absent, -1 unknown; LabelError names the lines of other values."""
    values = np.full((len(rows), len(findings)), UNKNOWN, dtype=np.int8)
    faults = []
    for column, name in enumerate(findings):
        read = [VALUES.get(row[name].lower()) for row in rows]
        bad = [line for line, value in enumerate(read, 2) if value is None]
        if bad:
            faults.append(f"  {name}: {at_lines(bad, 'value', '')}")
        values[:, column] = [UNKNOWN if value is None else value for value in read]
    if faults:
        raise LabelError(
            "findings must be 1, 0 or nothing; other values in\n" + "\n".join(faults),
            remedy="correct them, or take columns that are no findings out of the table",
        )
    return values


def text_column(rows: Rows, name: str) -> np.ndarray:
    """One column as an array of text; empty where the table has no such column."""
    return np.array([row.get(name, "") for row in rows], dtype=object)


def at_lines(lines: Sequence[int], what: str, fault: str) -> str:
    """`3 rows without a name (line 2, 5, 9)`: how many, what is wrong, where the first ones are."""
    shown = ", ".join(str(line) for line in lines[:SHOWN_LINES])
    more = ", ..." if len(lines) > SHOWN_LINES else ""
    words = [str(len(lines)), what + "s" * (len(lines) > 1), fault, f"(line {shown}{more})"]
    return " ".join(word for word in words if word)
