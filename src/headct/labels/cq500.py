"""CQ500: `reads.csv` of three readers -> the majority, for every study in the DICOM folders.

The table has a row per scan (`CQ500-CT-427`) and 14 findings of each reader R1, R2, R3. All series
of a scan (thin, thick, tilted twins, contrast) share its row, its patient and its split.
Source: S. Chilamkurthy et al., Lancet 2018;392:2388-2396; data CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from headct.dicom.header import patient_key
from headct.dicom.index import Index
from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.series import SeriesFiles
from headct.errors import LabelError
from headct.labels.dicom_files import index_dicom
from headct.labels.lines import read_header, read_lines
from headct.labels.table import Labelled, Row, once_each
from headct.labels.vocabulary import Value, contradicts, implied, shared_name
from headct.store.label_table import at_lines

READERS = ("R1", "R2", "R3")
TABLE = "the table of reads"
NUMBER = re.compile(r"CQ500[-_ ]?CT[-_ ]?(\d+)", re.IGNORECASE)
REMEDY = "give the reads.csv of CQ500 as it was published, or mend these rows"


def read_majority(path: Path) -> dict[int, dict[str, Value]]:
    """Labels by scan number: what at least two of the three readers say; unknown without them.

    Raises:
        LabelError: columns missing or unknown, a read other than 0, 1 and nothing, a name of
            another form, two rows about one scan.
    """
    header = read_header(path, TABLE)
    findings = [name.partition(":")[2] for name in header if name.startswith("R1:")]
    reads = [f"{reader}:{finding}" for finding in findings for reader in READERS]
    category = ["Category"] if "Category" in header else []
    names = [shared_name(finding) for finding in findings]
    lines = read_lines(path, TABLE, ["name", *reads, *category], only=True)
    labels: dict[int, dict[str, Value]] = {}
    faults: dict[str, list[int]] = {
        "that names no CQ500 scan": [],
        "about a scan that an earlier row is about": [],
        "with a read other than 0, 1 and nothing": [],
    }
    nameless, doubled, odd = faults.values()
    for line, (name, *cells) in lines:
        number = scan_number([name])
        votes = [cells[n : n + 3] for n in range(0, len(reads), 3)]
        if number is None:
            nameless.append(line)
        elif number in labels:
            doubled.append(line)
        elif not {vote for three in votes for vote in three} <= {"0", "1", ""}:
            odd.append(line)
        else:
            labels[number] = dict(zip(names, map(_majority, votes), strict=True))
    for fault, at in faults.items():
        if at:
            raise LabelError(f"{TABLE}: {at_lines(at, 'row', fault)}", remedy=REMEDY)
    if not findings:
        raise LabelError(f"{TABLE} has no reads R1:..., R2:..., R3:...", remedy=REMEDY)
    return labels


def _majority(votes: Sequence[str]) -> Value:
    return next((int(value) for value in ("1", "0") if votes.count(value) >= 2), None)


def scan_number(texts: Iterable[str]) -> int | None:
    """427 of the first text with `CQ500-CT-427` or `CQ500CT427`."""
    found = (NUMBER.search(text) for text in texts)
    return next((int(match[1]) for match in found if match), None)


def read_cq500(
    labels: Path, dicom: Sequence[Path], key: bytes, work: Path | None = None
) -> Labelled:
    """One row per study; its scan is named by PatientID or PatientName, else by the folders.

    Args:
        labels: reads.csv.
        dicom: folders or archives of the set.
        key: the secret of the pseudonyms.
        work: see `index_dicom`.

    Raises:
        LabelError: a table that is not that of CQ500, or a header that names another scan than
            the folder it lies in.
    """
    reads = read_majority(labels)
    names = Pseudonymizer(key)
    rows: dict[tuple[str, int], Row] = {}
    found: set[int] = set()
    n_unread = n_misplaced = n_series = 0
    index = index_dicom(dicom, work)
    for series in index.series:
        number, agrees = _number_of(index, series)
        n_misplaced += not agrees
        if number is None or number not in reads:
            n_unread += 1
            continue
        n_series += 1
        found.add(number)
        study_id = names.study_id(series.study_uid)
        patient_id = names.patient_id(patient_key(f"CQ500-CT-{number}"))
        rows[study_id, number] = Row(study_id, patient_id, implied(reads[number]))
    if n_misplaced:
        raise LabelError(
            f"{n_misplaced} series lie in the folder of another scan than their header names",
            remedy="unpack CQ500 again: which labels are theirs is not clear",
        )
    counts = {
        "series of labelled scans": n_series,
        "series of scans without a read: left out": n_unread,
        "scans with reads have no DICOM file": len(reads) - len(found),
        "scans have a finding without what it implies: taken for implied": sum(
            contradicts(reads[number]) for number in found
        ),
    }
    once, notes = once_each(rows.values())
    notes += [f"{n} {what}" for what, n in counts.items() if n]
    return Labelled("study_id", once, len(reads), notes)


def _number_of(index: Index, series: SeriesFiles) -> tuple[int | None, bool]:
    """The number of the scan, and whether header and folder agree on it."""
    first = series.headers[0]
    by_header = scan_number(first.patient[slice(0, 3, 2)])  # PatientID, name
    by_folder = scan_number(reversed(index.place(first.path).parts))
    if by_header is None or by_folder is None:
        return by_folder if by_header is None else by_header, True
    return by_header, by_header == by_folder
