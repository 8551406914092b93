"""Health records: diagnoses with dates, and scans with dates -> labels of studies by rules.

Identifiers and dates are read, never written: the table has pseudonyms, the reasons are words.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path

from headct.atomic import replacing
from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.labels.lines import read_lines
from headct.labels.rule import (
    IMPLIED,
    Event,
    History,
    Reason,
    Rules,
    System,
    beginnings,
    decide,
    plain_code,
)
from headct.labels.scan_dates import ScanDates, calendar_day
from headct.labels.table import Labelled, Row
from headct.labels.vocabulary import Value, implied
from headct.store.label_table import at_lines

DIAGNOSES = "the table of diagnoses"
SYSTEMS: dict[str, System] = {"icd9": "icd9", "icd9cm": "icd9", "icd10": "icd10"}
SYSTEMS |= {"icd10cm": "icd10", "icd10gm": "icd10", "icd10who": "icd10"}
CONTACT = "contact"
"""System of a row that only says that the patient was seen."""

Reasons = dict[str, dict[str, Reason]]
"""What decided, by study_id and finding."""


def read_records(
    diagnoses: Path, scans: ScanDates, rules: Rules, key: bytes
) -> tuple[Labelled, Reasons]:
    """One row per study, and what decided each label.

    Args:
        diagnoses: patient_id, code, date, system (ICD-9, ICD-10 or contact); more is not read.
        scans: the studies to label.
        rules: codes, windows and exclusions per finding.
        key: the secret of the pseudonyms.

    Raises:
        LabelError: rows without a value, of another form, or that contradict each other.
    """
    patients = {scan.patient for scan in scans.studies.values()}
    histories, n_diagnoses, n_others = _read_histories(diagnoses, patients, rules)
    names = Pseudonymizer(key)
    rows, reasons = [], {}
    for uid, scan in scans.studies.items():
        values, why = _label(rules, histories.get(scan.patient), scan.day)
        study_id = names.study_id(uid)
        rows.append(Row(study_id, names.patient_id(scan.patient), values))
        reasons[study_id] = why
    counts = {
        "diagnoses are of patients without a scan: not used": n_others,
        "patients with a scan have no diagnosis": len(patients - histories.keys()),
    }
    rows.sort(key=lambda row: row.name)
    notes = [*scans.notes, *(f"{n} {what}" for what, n in counts.items() if n)]
    return Labelled("study_id", rows, scans.n_read + n_diagnoses, notes), reasons


def _label(
    rules: Rules, history: History | None, day: int
) -> tuple[dict[str, Value], dict[str, Reason]]:
    decided = {
        name: decide(rule, history, day, rules.follow_up_days)
        for name, rule in rules.findings.items()
    }
    values = implied({name: value for name, (value, _) in decided.items()})
    why = {
        name: reason if values[name] == value else IMPLIED
        for name, (value, reason) in decided.items()
    }
    return values, why


def _read_histories(
    path: Path, patients: set[str], rules: Rules
) -> tuple[dict[str, History], int, int]:
    """Histories of the patients, how many rows, and how many of them are of other people."""
    histories: dict[str, History] = {}
    wanted = _wanted(rules)
    names = cache(patient_key)
    bare: list[int] = []
    odd_dates: list[int] = []
    odd_codes: list[int] = []
    n_rows = n_others = 0
    columns = ("patient_id", "code", "date", "system")
    for line, (patient, code, date, system) in read_lines(path, DIAGNOSES, columns):
        n_rows += 1
        known = SYSTEMS.get(_plain(system))
        contact = _plain(system) == CONTACT
        day = calendar_day(date)
        text = plain_code(known, code) if known else None
        if not (patient and date and system and (code or contact)):
            bare.append(line)
        elif day is None:
            odd_dates.append(line)
        elif text is None and not contact:
            odd_codes.append(line)
        elif (name := names(patient)) not in patients:
            n_others += 1
        else:
            history = histories.setdefault(name, History())
            history.last_day = max(history.last_day, day)
            if known and text and text.startswith(wanted[known]):
                history.events.append(Event(day, known, text))
    _refuse("without patient_id, code, date or system", bare)
    _refuse("with a date other than YYYY-MM-DD", odd_dates)
    _refuse("with a code that is none of ICD-9 or ICD-10, as the row says", odd_codes)
    return histories, n_rows, n_others


def _wanted(rules: Rules) -> dict[System, tuple[str, ...]]:
    """Beginnings of all codes that any rule asks for."""
    codes = [c for rule in rules.findings.values() for c in (rule, *rule.exclude)]
    return {
        "icd9": beginnings(tuple(text for c in codes for text in c.icd9)),
        "icd10": beginnings(tuple(text for c in codes for text in c.icd10)),
    }


@cache
def _plain(system: str) -> str:
    return "".join(letter for letter in system.lower() if letter.isalnum())


def _refuse(fault: str, lines: list[int]) -> None:
    if lines:
        raise LabelError(f"{DIAGNOSES}: {at_lines(lines, 'row', fault)}", remedy="mend these rows")


def describe_reasons(labelled: Labelled, reasons: Reasons) -> list[str]:
    """Per finding how many studies are present, absent and unknown, and what decided."""
    words = {1: "present", 0: "absent", None: "unknown"}
    lines = []
    for name in next(iter(reasons.values()), {}):
        counts = Counter((row.values[name], reasons[row.name][name]) for row in labelled.rows)
        parts = []
        for value, word in words.items():
            why = [f"{n} {reason}" for (v, reason), n in counts.most_common() if v == value]
            total = sum(n for (v, _), n in counts.items() if v == value)
            parts.append(f"{total} {word}" + (f" ({', '.join(why)})" if why else ""))
        lines.append(f"{name}: {', '.join(parts)}")
    return lines


def write_reasons(path: Path, labelled: Labelled, reasons: Reasons) -> None:
    """Write what decided each label: study_id, finding, value, reason; no dates, no codes."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["study_id", "finding", "value", "reason"])
        for row in labelled.rows:
            for name, value in row.values.items():
                writer.writerow([row.name, name, value, reasons[row.name][name]])
