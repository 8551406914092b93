"""Which studies are wanted: a list from a file, or a query."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path

from headct.errors import UsageError

UID = re.compile(r"[0-9]+(\.[0-9]+){2,}")
UID_COLUMNS = frozenset({"studyinstanceuid", "studyuid"})
ACCESSION_COLUMNS = frozenset({"accessionnumber", "accession"})


@dataclass(frozen=True)
class StudyKey:
    """One study of a list: its UID, or its accession number; identifying, never shown."""

    uid: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)


@dataclass(frozen=True)
class Query:
    """Which studies and series to ask for; empty texts match everything.

    Attributes:
        modality: of a series; others are recorded, not transferred.
        body_part: BodyPartExamined; a series with an empty tag is transferred all the same.
        description: of the study; `*` and `?` stand for any text and any character.
        first_day, last_day: of the study.
    """

    modality: str = "CT"
    body_part: str = ""
    description: str = field(default="", repr=False)
    first_day: date | None = None
    last_day: date | None = None

    def days(self) -> Iterator[str]:
        """StudyDate for each question: one a day, since a PACS cuts long answers off in silence."""
        if self.first_day is None or self.last_day is None:
            yield ""
            return
        for n in range((self.last_day - self.first_day).days + 1):
            yield (self.first_day + timedelta(days=n)).strftime("%Y%m%d")


def parse_days(text: str) -> tuple[date, date]:
    """First and last day from `20200101-20201231`, or from one day.

    Raises:
        UsageError: not of that form.
    """
    first, _, last = text.partition("-")
    try:
        days = [datetime.strptime(day, "%Y%m%d").date() for day in (first, last or first)]
    except ValueError:
        days = []
    if len(days) != 2 or days[0] > days[1]:
        raise UsageError("not a range of days", remedy="e.g. --dates 20200101-20201231")
    return days[0], days[1]


def read_study_list(path: Path) -> list[StudyKey]:
    """Studies from a file, in its order, each once.

    A text file has one StudyInstanceUID or accession number a line (what has two dots between
    digits is a UID); a table has a column StudyInstanceUID or AccessionNumber, whichever case.

    Raises:
        UsageError: no such file, no such column, an empty list, or a value that none can have.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the list of studies cannot be read", remedy="check --studies") from error
    rows = list(csv.reader(io.StringIO(text), delimiter=_delimiter(text)))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise UsageError("the list of studies is empty", remedy="check --studies")
    header = [re.sub(r"[^a-z]", "", cell.lower()) for cell in rows[0]]
    column = _column(header)
    if column is None and len(rows[0]) > 1:
        raise UsageError(
            "the list of studies has no column StudyInstanceUID or AccessionNumber",
            remedy="name one so, or give one value a line",
        )
    body = rows if column is None else rows[1:]
    is_uid = column is not None and header[column] in UID_COLUMNS
    keys = [_key(row, column or 0, n, column, is_uid) for n, row in enumerate(body, 1)]
    return list(dict.fromkeys(keys))


def _delimiter(text: str) -> str:
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _column(header: list[str]) -> int | None:
    """UIDs rather than accession numbers, which need one more question to the PACS."""
    for names in (UID_COLUMNS, ACCESSION_COLUMNS):
        for n, name in enumerate(header):
            if name in names:
                return n
    return None


def _key(row: list[str], at: int, n: int, column: int | None, is_uid: bool) -> StudyKey:
    value = row[at] if at < len(row) else ""
    looks_like_uid = UID.fullmatch(value) is not None and len(value) <= 64
    wrong = not value or (is_uid and not looks_like_uid)
    if wrong or len(value) > 64 or re.search(r"[*?\\\x00-\x1f]", value):
        raise UsageError(
            f"row {n} of the list of studies holds no StudyInstanceUID or accession number",
            remedy="mend or remove it",
        )
    if is_uid or (column is None and looks_like_uid):
        return StudyKey(uid=value)
    return StudyKey(accession=value)
