"""CT-ICH: NIfTI scans and a table with a row per slice -> one row per scan.

`ct_scans/049.nii`, `masks/`, and `hemorrhage_diagnosis_raw_ct.csv` with a row per slice. A scan is
named as ingest names it: by the bytes of its file.
Source: M. D. Hssayeni et al., Data 2020;5(1):14; PhysioNet ct-ich 1.3.1.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.labels.lines import read_lines
from headct.labels.nifti_set import nifti_name, nifti_shape
from headct.labels.table import Labelled, Row, once_each
from headct.labels.vocabulary import Value, shared_name
from headct.store.label_table import at_lines

TABLE = "hemorrhage_diagnosis_raw_ct.csv"
SCANS = "ct_scans"
NUMBERS = ("PatientNumber", "SliceNumber")
TYPES = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")
NONE = "No_Hemorrhage"
FRACTURE = "Fracture_Yes_No"
COLUMNS = (*NUMBERS, *TYPES, NONE, FRACTURE)

Slices = dict[int, list[str]]
"""TYPES, NONE and FRACTURE as '1' or '0', by slice number."""


def read_ct_ich(root: Path, key: bytes) -> Labelled:
    """One row per file of `ct_scans` with slices in the table.

    A finding is present where a slice has it, absent where all slices of the file are in the table
    and none has it, else unknown.

    Raises:
        LabelError: no table, no scans, or rows that cannot be used.
    """
    if not (root / TABLE).is_file() or not (root / SCANS).is_dir():
        raise LabelError(
            f"no CT-ICH set: it has {SCANS}/ and {TABLE}", remedy="give the folder that holds both"
        )
    scans, n_rows, n_doubled = _read_slices(root / TABLE)
    names = Pseudonymizer(key)
    rows = []
    n_bare = n_short = 0
    seen = set()
    for path in sorted((root / SCANS).glob("*.nii*")):
        number = _number(path)
        if number not in scans:
            n_bare += 1
            continue
        if number in seen:
            raise LabelError(
                f"{SCANS} has two files of one patient number", remedy="keep one, .nii or .nii.gz"
            )
        seen.add(number)
        n_slices = nifti_shape(path)[2]
        n_short += len(scans[number]) != n_slices
        values = _of_scan(scans[number], n_slices)
        patient_id = names.patient_id(f"CT-ICH {number}")
        rows.append(Row(nifti_name(path, names), patient_id, values))
    counts = {
        "rows repeat an earlier one: read once": n_doubled,
        "scans are not in the table: left out": n_bare,
        "scans have other slices than the table: nothing is absent there": n_short,
        "scans of the table have no file": len(scans.keys() - seen),
    }
    rows, notes = once_each(rows)
    notes += [f"{n} {what}" for what, n in counts.items() if n]
    return Labelled("scan_id", rows, n_rows, notes)


def _number(path: Path) -> int:
    stem = path.name.split(".")[0]
    return int(stem) if stem.isdecimal() else -1


def _read_slices(table: Path) -> tuple[dict[int, Slices], int, int]:
    """Slices by patient number, how many rows, and how many repeat one."""
    scans: dict[int, Slices] = defaultdict(dict)
    faults: dict[str, list[int]] = {
        "without a patient and slice number": [],
        "with a finding other than 0 and 1": [],
        f"with a bleed and {NONE}, or with neither": [],
        "that contradicts an earlier one about its slice": [],
    }
    nameless, odd, unclear, contradicting = faults.values()
    n_rows = n_doubled = 0
    for line, (patient, place, *cells) in read_lines(table, TABLE, COLUMNS, only=True):
        n_rows += 1
        if not (patient.isdecimal() and place.isdecimal()):
            nameless.append(line)
        elif not set(cells) <= {"0", "1"}:
            odd.append(line)
        elif ("1" in cells[: len(TYPES)]) == (cells[len(TYPES)] == "1"):
            unclear.append(line)
        elif scans[int(patient)].setdefault(int(place), cells) is not cells:
            n_doubled += 1
            if scans[int(patient)][int(place)] != cells:
                contradicting.append(line)
    for fault, lines in faults.items():
        if lines:
            raise LabelError(f"{TABLE}: {at_lines(lines, 'row', fault)}", remedy="mend these rows")
    return scans, n_rows, n_doubled


def _of_scan(slices: Slices, n_slices: int) -> dict[str, Value]:
    """Slices are numbered from 1; where some are missing, what is not seen is unknown."""
    whole = slices.keys() == set(range(1, n_slices + 1))
    absent: Value = 0 if whole else None
    columns = (*TYPES, NONE, FRACTURE)
    found = {
        name: any(cells[place] == "1" for cells in slices.values())
        for place, name in enumerate(columns)
    }
    bleeds = any(found[name] for name in TYPES)
    values: dict[str, Value] = {"ich": 1 if bleeds else absent}
    for name in (*TYPES, FRACTURE):
        values[shared_name(name)] = 1 if found[name] else absent
    return values
