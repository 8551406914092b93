"""When which study was made, of whom: from a table, or from DICOM headers; never written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from headct.dicom.header import patient_key
from headct.errors import LabelError
from headct.labels.dicom_files import index_dicom
from headct.labels.lines import read_lines
from headct.store.label_table import at_lines

TABLE = "the table of scans"


@dataclass(frozen=True)
class Scan:
    """One study: of whom, and on which day of the calendar."""

    patient: str = field(repr=False)
    day: int = field(repr=False)


@dataclass(frozen=True)
class ScanDates:
    """Studies by StudyInstanceUID."""

    studies: dict[str, Scan] = field(repr=False)
    n_read: int
    """Rows of the table; 0 where there is none."""
    notes: list[str]


@cache
def calendar_day(date: str) -> int | None:
    """The day of an ISO date (2021-03-14, 20210314, with or without a time); None for others."""
    try:
        return datetime.fromisoformat(date).toordinal()
    except ValueError:
        return None


def dates_of_table(path: Path) -> ScanDates:
    """Studies of a table with patient_id, study_uid and date; more is not read.

    Raises:
        LabelError: rows without a value, with another date, or that contradict each other.
    """
    studies: dict[str, Scan] = {}
    faults: dict[str, list[int]] = {
        "without patient_id, study_uid or date": [],
        "with a date other than YYYY-MM-DD": [],
        "that contradicts an earlier one about its study": [],
    }
    bare, odd, contradicting = faults.values()
    n_rows = n_doubled = 0
    for line, (patient, uid, date) in read_lines(path, TABLE, ("patient_id", "study_uid", "date")):
        n_rows += 1
        day = calendar_day(date)
        if not (patient and uid and date):
            bare.append(line)
        elif day is None:
            odd.append(line)
        else:
            scan = Scan(patient_key(patient), day)
            other = studies.setdefault(uid, scan)
            n_doubled += other is not scan
            if other != scan:
                contradicting.append(line)
    for fault, lines in faults.items():
        if lines:
            raise LabelError(f"{TABLE}: {at_lines(lines, 'row', fault)}", remedy="mend these rows")
    notes = [f"{n_doubled} rows of scans repeat an earlier one: read once"] if n_doubled else []
    return ScanDates(studies, n_rows, notes)


def dates_of_dicom(sources: Sequence[Path], work: Path | None = None) -> ScanDates:
    """Studies by PatientID and AcquisitionDate (the earliest of a study) of DICOM headers.

    Args:
        sources: folders and archives.
        work: see `index_dicom`.

    Raises:
        LabelError: one PatientID of two issuers, or a study of two patients.
    """
    studies: dict[str, Scan] = {}
    issuers: dict[str, set[str]] = {}
    mixed, n_bare = set(), 0
    for series in index_dicom(sources, work).series:
        number, issuer = series.headers[0].patient[:2]
        days = [calendar_day(header.acquisition_date) for header in series.headers]
        known = [day for day in days if day is not None]
        if not (number and known and series.study_uid):
            n_bare += 1
            continue
        issuers.setdefault(number, set()).add(issuer)
        scan = Scan(patient_key(number), min(known))
        other = studies.setdefault(series.study_uid, scan)
        if other.patient != scan.patient:
            mixed.add(series.study_uid)
        studies[series.study_uid] = min(other, scan, key=lambda one: one.day)
    n_shared = sum(len(found) > 1 for found in issuers.values())
    if n_shared or mixed:
        raise LabelError(
            f"{n_shared} patient numbers are of two issuers, {len(mixed)} studies of two patients",
            remedy="say with --scans whose these studies are",
        )
    what = "series name no patient, no study or no acquisition date: left out"
    return ScanDates(studies, 0, [f"{n_bare} {what}"] if n_bare else [])
