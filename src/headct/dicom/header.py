"""One allow-listed, typed record per image; what is not listed here is never read."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headct.dicom.elements import (
    MEDIA_SOP_CLASS,
    Elements,
    MalformedError,
    NotDicomError,
    TruncatedError,
    read_elements,
)
from headct.dicom.reasons import Reason

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".dc3"})
Order = Literal["little", "big"]
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of a file that is no readable image.

    Attributes:
        path: the file; never to be written out, since names of folders can name people.
        reason: skipped or refused, and why.
        series_uid: of the series that it is a damaged member of; empty where unknown.
    """

    path: Path = field(repr=False)
    reason: Reason
    message: str = ""
    series_uid: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What headct reads of one image (or one frame of an enhanced image).

    Numbers that the file has but that cannot be read are NaN; what it lacks is None or empty.
    Identifying values are kept for grouping and pseudonyms only and never shown.
    """

    path: Path = field(repr=False)
    patient: tuple[str, str, str, str] = field(repr=False)
    """PatientID, issuer, name, birth date."""
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    image_uid: str = field(repr=False)
    frame_of_reference: str = field(repr=False)
    study_description: str = field(repr=False)
    series_description: str = field(repr=False)

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    burned_in: str
    body_part: str
    contrast: str = field(repr=False)
    manufacturer: str
    model: str
    kernel: str
    kvp: float | None
    slice_thickness_mm: float | None
    tilt_degrees: float | None
    patient_position: str
    sex: str
    age_years: float | None
    acquisition: str
    acquisition_time: str = field(repr=False)
    temporal_position: str
    instance_number: float | None

    position_mm: tuple[float, ...] | None
    """ImagePositionPatient, LPS."""
    orientation: tuple[float, ...] | None
    """ImageOrientationPatient: direction of increasing column index, then of row index."""
    pixel_spacing_mm: tuple[float, ...] | None
    """Between rows, between columns."""

    rows: int
    columns: int
    samples: int
    n_frames: float
    frame: int | None = None
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: int | None
    padding_limit: int | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    lossy: bool

    syntax: str
    pixel_offset: int | None
    pixel_length: int | None
    data_bytes: int
    """Bytes of the file (inflated, where it is deflated)."""

    @property
    def patient_key(self) -> str:
        """PatientID with its issuer, for a pseudonym; empty where the file has none."""
        number, issuer = self.patient[:2]
        return f"{number}\0{issuer}" if number else ""


def patient_key(number: str) -> str:
    """The `Header.patient_key` of a PatientID without issuer that a table gives as text."""
    return f"{_tidy(number)}\0" if number else ""


def read_header(path: Path) -> Header | FileOutcome:
    """The header record of a file, or what became of the file; never raises for a bad file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode):
                return FileOutcome(path, Reason.SPECIAL_FILE)
            if status.st_size == 0:
                return FileOutcome(path, Reason.EMPTY_FILE)
            elements = read_elements(handle, status.st_size, WANTED)
    except NotDicomError:
        if path.suffix.lower() in DICOM_SUFFIXES:
            return FileOutcome(path, Reason.UNREADABLE, "named like DICOM, but without its header")
        return FileOutcome(path, Reason.NOT_DICOM)
    except TruncatedError as error:
        message = "the file ends inside its header"
        return FileOutcome(path, Reason.TRUNCATED, message, _text(error.values.get(SERIES_UID)))
    except MalformedError as error:
        message = "the header breaks the DICOM encoding"
        return FileOutcome(path, Reason.UNREADABLE, message, _text(error.values.get(SERIES_UID)))
    except OSError:
        return FileOutcome(path, Reason.NO_PERMISSION, "the file cannot be opened or read")
    return _classify(path, elements)


def _classify(path: Path, elements: Elements) -> Header | FileOutcome:
    values = elements.values
    if DIRECTORY_CLASS in (_text(values.get(MEDIA_SOP_CLASS)), _text(values.get(SOP_CLASS))):
        return FileOutcome(path, Reason.DIRECTORY_FILE)
    if not elements.syntax:
        return FileOutcome(path, Reason.NO_TRANSFER_SYNTAX)
    if not elements.has_meta and SOP_CLASS not in values and MODALITY not in values:
        return FileOutcome(path, Reason.NOT_DICOM)
    return header_from(path, elements)


def header_from(path: Path, elements: Elements) -> Header:
    """The typed record from raw values."""
    values = elements.values
    order: Order = "big" if elements.big_endian else "little"
    record: dict[str, Any] = {
        name: decode(values.get(tag)) for tag, (name, decode) in TEXTS.items()
    }
    record |= {name: _count(values.get(tag), order) for tag, name in COUNTS.items()}
    number, issuer, person, birth = (_name(values.get(tag)) for tag in PATIENT_TAGS)
    for name in REQUIRED_COUNTS:
        record[name] = record[name] or 0
    signed = bool(record.pop("representation"))
    for name in ("padding", "padding_limit"):
        if signed and (record[name] or 0) > 0x7FFF:
            record[name] -= 0x10000
    return Header(
        path=path,
        patient=(number, issuer, person, birth),
        syntax=elements.syntax,
        pixel_offset=elements.pixel_offset,
        pixel_length=elements.pixel_length,
        data_bytes=elements.size,
        signed=signed,
        **record,
    )


def _text(raw: bytes | None) -> str:
    return raw.decode("latin-1").strip(" \0") if raw else ""


def _code(raw: bytes | None) -> str:
    return _text(raw).upper()


def _codes(raw: bytes | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in _code(raw).split("\\")) if raw else ()


def _name(raw: bytes | None) -> str:
    return _tidy(_text(raw))


def _tidy(text: str) -> str:
    return " ".join(text.upper().replace("^", " ").split())


def _number(raw: bytes | None) -> float | None:
    numbers = _numbers(raw)
    return numbers[0] if numbers else None


def _numbers(raw: bytes | None) -> tuple[float, ...] | None:
    text = _text(raw)
    if not text:
        return None
    return tuple(_float(part) for part in text.split("\\"))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _count(raw: bytes | None, order: Order) -> int | None:
    """An unsigned short; None where it is missing or not two bytes."""
    return int.from_bytes(raw, order) if raw and len(raw) == 2 else None


def _frames(raw: bytes | None) -> float:
    number = _number(raw)
    return 1.0 if number is None else number


def _was_lossy(raw: bytes | None) -> bool:
    return _text(raw) == "01"


def _device(raw: bytes | None) -> str:
    """Name of a maker, model or kernel; text that does not look like one is left out."""
    text = _text(raw)
    return text if re.fullmatch(r"[\w .,/+()\\-]{0,48}", text) else ""


def _age(raw: bytes | None) -> float | None:
    """AS (`034Y`, `006M`) in years; over 89 becomes 90, as HIPAA's safe harbour asks."""
    text = _code(raw)
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}.get(text[-1:], 0.0)
    if not per_year or not text[:-1].isdigit():
        return None
    return min(int(text[:-1]) / per_year, 90.0)


Decoder = Callable[[bytes | None], Any]
SOP_CLASS, MODALITY, SERIES_UID = 0x00080016, 0x00080060, 0x0020000E
PATIENT_TAGS = (0x00100020, 0x00100021, 0x00100010, 0x00100030)
TEXTS: dict[int, tuple[str, Decoder]] = {
    SOP_CLASS: ("sop_class", _text),
    MODALITY: ("modality", _code),
    0x0020000D: ("study_uid", _text),
    SERIES_UID: ("series_uid", _text),
    0x00080018: ("image_uid", _text),
    0x00200052: ("frame_of_reference", _text),
    0x00081030: ("study_description", _text),
    0x0008103E: ("series_description", _text),
    0x00080008: ("image_type", _codes),
    0x00280301: ("burned_in", _code),
    0x00180015: ("body_part", _code),
    0x00180010: ("contrast", _text),
    0x00080070: ("manufacturer", _device),
    0x00081090: ("model", _device),
    0x00181210: ("kernel", _device),
    0x00180060: ("kvp", _number),
    0x00180050: ("slice_thickness_mm", _number),
    0x00181120: ("tilt_degrees", _number),
    0x00185100: ("patient_position", _code),
    0x00100040: ("sex", _code),
    0x00101010: ("age_years", _age),
    0x00200012: ("acquisition", _text),
    0x00080032: ("acquisition_time", _text),
    0x00200100: ("temporal_position", _text),
    0x00200013: ("instance_number", _number),
    0x00200032: ("position_mm", _numbers),
    0x00200037: ("orientation", _numbers),
    0x00280030: ("pixel_spacing_mm", _numbers),
    0x00280008: ("n_frames", _frames),
    0x00280004: ("photometric", _code),
    0x00281053: ("slope", _number),
    0x00281052: ("intercept", _number),
    0x00281054: ("rescale_type", _code),
    0x00282110: ("lossy", _was_lossy),
}
COUNTS = {
    0x00280002: "samples",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "bits_allocated",
    0x00280101: "bits_stored",
    0x00280102: "high_bit",
    0x00280103: "representation",
    0x00280120: "padding",
    0x00280121: "padding_limit",
}
REQUIRED_COUNTS = ("samples", "rows", "columns", "bits_allocated", "bits_stored", "high_bit")
WANTED = frozenset((*TEXTS, *COUNTS, *PATIENT_TAGS, MEDIA_SOP_CLASS))
"""All that is ever read of a data set."""
