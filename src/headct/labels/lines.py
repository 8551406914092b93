"""Rows of a CSV or Parquet table one after the other, each with its line in the file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from headct.errors import LabelError
from headct.store.label_table import at_lines

Line = tuple[int, list[str]]
"""Line in the file (the header is line 1), and the values of the columns asked for."""


def read_header(path: Path, what: str) -> list[str]:
    """Column names.

    Raises:
        LabelError: no such file, not CSV (UTF-8) or Parquet, or two columns of one name.
    """
    if not path.is_file():
        raise LabelError(f"{what} is not there", remedy="give a CSV or Parquet file")
    if path.suffix == ".parquet":
        header = list(_parquet(path, what).schema_arrow.names)
    else:
        header = next(_csv_lines(path, what), (1, []))[1]
    if not all(header) or len(set(header)) < len(header) or not header:
        raise LabelError(
            f"{what} has no header, a column without a name, or two of one name",
            remedy="give each column its own name, in the first line",
        )
    return header


def read_lines(
    path: Path, what: str, columns: Sequence[str], *, only: bool = False
) -> Iterator[Line]:
    """The values of some columns, as stripped text; lines that hold nothing are passed over.

    Args:
        path: CSV (UTF-8; comma, semicolon or tab) or Parquet.
        what: name of the table in errors.
        columns: which values to give, in this order.
        only: other columns are an error, since the table is a published one and this is not it.

    Raises:
        LabelError: columns missing or unknown, no rows, or rows that are too short or too long
            (raised after the last row).
    """
    header = read_header(path, what)
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise LabelError(
            f"{what} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}",
            remedy=f"it must have {', '.join(columns)}",
        )
    unknown = [name for name in header if name not in columns]
    if only and unknown:
        raise LabelError(
            f"{what} has the unknown column{'s' * (len(unknown) > 1)} {', '.join(unknown)}",
            remedy=f"give the table as it was published: {', '.join(columns)}",
        )
    if path.suffix == ".parquet":
        return _parquet_rows(path, what, columns)
    return _chosen(_csv_lines(path, what), what, header, columns)


def _chosen(
    lines: Iterable[Line], what: str, header: Sequence[str], columns: Sequence[str]
) -> Iterator[Line]:
    places = [header.index(name) for name in columns]
    bad: list[int] = []
    n = -1
    for n, (line, values) in enumerate(lines):
        if n == 0:
            continue
        if len(values) != len(header):
            bad.append(line)
        else:
            yield line, [values[place].strip() for place in places]
    if bad:
        raise LabelError(
            f"{what}: {at_lines(bad, 'row', 'with more or fewer fields than the header')}",
            remedy="mend these rows",
        )
    if n < 1:
        raise LabelError(f"{what} has no rows", remedy="give the whole table")


def _csv_lines(path: Path, what: str) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        try:
            first = handle.readline()
            handle.seek(0)
            reader = csv.reader(handle, delimiter=max(",;\t", key=first.count))
            for n, values in enumerate(reader):
                if n == 0:
                    yield 1, [name.strip() for name in values]
                elif any(values):
                    yield reader.line_num, values
        except UnicodeDecodeError as error:
            raise LabelError(f"{what} is not UTF-8 text", remedy="save it as CSV UTF-8") from error
        except csv.Error as error:
            raise LabelError(f"{what} is not CSV", remedy="check the file") from error


def _parquet(path: Path, what: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise LabelError(f"{what} is not a Parquet file", remedy="check the file") from error


def _parquet_rows(path: Path, what: str, columns: Sequence[str]) -> Iterator[Line]:
    line = 1
    for batch in _parquet(path, what).iter_batches(columns=list(columns)):
        arrays = [batch.column(name).to_pylist() for name in columns]
        for values in zip(*arrays, strict=True):
            line += 1
            yield line, ["" if value is None else str(value).strip() for value in values]
    if line == 1:
        raise LabelError(f"{what} has no rows", remedy="give the whole table")
