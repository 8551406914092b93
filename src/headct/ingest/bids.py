"""Whose scan a NIfTI file is and how it was made: BIDS names, participants, sidecar files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headct.dicom.elements import Elements
from headct.dicom.header import Header, header_from
from headct.dicom.index import NIFTI_SUFFIXES, Index

ENTITY = re.compile(r"(sub|ses)-([A-Za-z0-9]+)(?=_|$)")
MAX_TEXT_BYTES = 4 << 20
TAGS = {
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "ManufacturersModelName": 0x00081090,
    "ManufacturerModelName": 0x00081090,
    "ConvolutionKernel": 0x00181210,
    "KVP": 0x00180060,
    "SliceThickness": 0x00180050,
    "BodyPartExamined": 0x00180015,
    "BodyPart": 0x00180015,
    "ContrastBolusAgent": 0x00180010,
    "ContrastBolusIngredient": 0x00181048,
    "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E,
    "ProtocolName": 0x00181030,
    "ImageType": 0x00080008,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
}
"""Keys of a sidecar (BIDS, dcm2niix) and the DICOM tags that they come from."""
SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


@dataclass(frozen=True)
class NiftiScan:
    """A NIfTI file and what is known of it beside its voxels.

    Attributes:
        path: the file.
        header: acquisition, as a DICOM header would say it; empty where nothing does.
        patient_key, study_key: for pseudonyms; empty where nothing names them, so that the file is
            a patient of its own.
    """

    path: Path = field(repr=False)
    header: Header = field(repr=False)
    patient_key: str = field(default="", repr=False)
    study_key: str = field(default="", repr=False)


def nifti_scans(index: Index) -> list[NiftiScan]:
    """All NIfTI files of an index, with what lies beside them."""
    beside = _Beside(index)
    return [_scan(beside, file, index.place(file).absolute()) for file in index.nifti]


def _scan(beside: _Beside, file: Path, place: Path) -> NiftiScan:
    values = beside.sidecar(place)
    found = _entities(place)
    if found is None:
        return NiftiScan(file, _header(file, values))
    root, subject, session = found
    patient = f"bids\0{root}\0{subject}"
    values = beside.participant(root, subject) | values
    return NiftiScan(file, _header(file, values), patient, f"{patient}\0{session}")


def _entities(place: Path) -> tuple[Path, str, str] | None:
    """Root, subject and session of a file that lies and is named as BIDS wants it."""
    found = dict(ENTITY.findall(place.name.split(".")[0]))
    subject, session = found.get("sub", ""), found.get("ses", "")
    folders = [p for p in place.parents if subject and p.name == f"sub-{subject}"]
    return (folders[-1].parent, subject, session) if folders else None


class _Beside:
    """Small text files beside NIfTI files, in folders and in archives."""

    def __init__(self, index: Index) -> None:
        self.unpacked = {place: file for file, place in index.places.items()}
        self.participants: dict[Path, dict[str, dict[str, str]]] = {}

    def sidecar(self, place: Path) -> dict[str, str]:
        name = place.name
        for suffix in sorted(NIFTI_SUFFIXES, key=len, reverse=True):
            name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
        try:
            values = json.loads(self._text(place.with_name(f"{name}.json")) or "{}")
        except (ValueError, RecursionError):
            return {}
        return _texts(values) if isinstance(values, dict) else {}

    def participant(self, root: Path, subject: str) -> dict[str, str]:
        if root not in self.participants:
            text = self._text(root / "participants.tsv") or ""
            self.participants[root] = _participants(text)
        row = self.participants[root].get(subject, {})
        age, sex = (row.get("age") or "").strip(), (row.get("sex") or "").strip().lower()
        found = {"PatientSex": SEX.get(sex, "")}
        if re.fullmatch(r"\d{1,3}(\.\d+)?", age):
            found["PatientAge"] = f"{int(float(age)):03d}Y"
        return found

    def _text(self, place: Path) -> str | None:
        file = self.unpacked.get(place, place)
        try:
            if not file.is_file():  # a pipe would wait for ever
                return None
            with file.open("rb") as handle:
                return handle.read(MAX_TEXT_BYTES).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return None


def _participants(text: str) -> dict[str, dict[str, str]]:
    """Rows by subject; a table that is none takes nothing away."""
    try:
        rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    except csv.Error:
        return {}
    return {(row.get("participant_id") or "").removeprefix("sub-"): row for row in rows}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The known keys, each as DICOM would write its value."""
    found = {}
    for key, value in values.items():
        several = value if isinstance(value, list) else [value]
        if key in TAGS and all(isinstance(part, str | int | float) for part in several):
            found[key] = "\\".join(str(part) for part in several)
    return found


def _header(file: Path, values: Mapping[str, str]) -> Header:
    raw = {TAGS[key]: text.encode() for key, text in values.items() if text}
    return header_from(file, Elements(raw | {0x00080005: b"ISO_IR 192"}))
