"""One allow-listed, typed record per image; what is not listed here is never read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headct.dicom.elements import (
    MEDIA_SOP_CLASS,
    Elements,
    HeaderError,
    MalformedError,
    NotDicomError,
    TruncatedError,
    read_elements,
)
from headct.dicom.reasons import Reason
from headct.dicom.values import (
    Order,
    age,
    age_between,
    code,
    codes,
    count,
    device,
    frame_count,
    free_text,
    is_there,
    kernel_name,
    maker,
    number,
    numbers,
    person_name,
    plain_text,
    sex,
    tidy,
    was_lossy,
)

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".dc3"})
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of a file that is no readable image.

    Attributes:
        path: the file; never to be written out, since names of folders can name people.
        reason: skipped or refused, and why.
        series_uid: of the series that it is a damaged member of; empty where unknown.
        partial: what could be read before the header broke off, if anything.
    """

    path: Path = field(repr=False)
    reason: Reason
    message: str = ""
    series_uid: str = field(default="", repr=False)
    partial: Header | None = field(default=None, repr=False)


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
    event_uid: str = field(repr=False)
    """IrradiationEventUID: equal for all reconstructions of one exposure."""
    study_description: str = field(repr=False)
    series_description: str = field(repr=False)
    protocol: str = field(repr=False)

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    burned_in: str
    body_part: str
    contrast: str = field(repr=False)
    """Agent, route, volume and ingredient, as far as they are given."""
    manufacturer: str
    model: str
    kernel: str = field(repr=False)
    """As it stands in the file; `kernel_shown` is what may be written out."""
    kvp: float | None
    slice_thickness_mm: float | None
    tilt_degrees: float | None
    patient_position: str
    sex: str
    age_years: float | None
    acquisition: str
    acquisition_date: str = field(repr=False)
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
    has_modality_lut: bool
    lossy: bool

    syntax: str
    pixel_offset: int | None
    pixel_length: int | None
    data_bytes: int
    """Bytes of the file (inflated, where it is deflated)."""

    @property
    def kernel_shown(self) -> str:
        """The kernel where it is a known kind of name, else `other`."""
        return kernel_name(self.kernel)

    @property
    def patient_key(self) -> str:
        """PatientID with its issuer, for a pseudonym; empty where the file has none."""
        number, issuer = self.patient[:2]
        return f"{number}\0{issuer}" if number else ""


def patient_key(number: str) -> str:
    """The `Header.patient_key` of a PatientID without issuer that a table gives as text."""
    return f"{tidy(number)}\0" if number else ""


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
        return _broken(path, Reason.TRUNCATED, "the file ends inside its header", error)
    except MalformedError as error:
        return _broken(path, Reason.UNREADABLE, "the header breaks the DICOM encoding", error)
    except OSError:
        return FileOutcome(path, Reason.NO_PERMISSION, "the file cannot be opened or read")
    return _classify(path, elements)


def _broken(path: Path, reason: Reason, message: str, error: HeaderError) -> FileOutcome:
    """A file whose header broke off, with what it had said by then."""
    series_uid = plain_text(error.values.get(SERIES_UID))
    partial = header_from(path, Elements(error.values)) if error.values else None
    return FileOutcome(path, reason, message, series_uid, partial)


def _classify(path: Path, elements: Elements) -> Header | FileOutcome:
    values = elements.values
    if DIRECTORY_CLASS in [plain_text(values.get(tag)) for tag in (MEDIA_SOP_CLASS, SOP_CLASS)]:
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
    record |= {name: count(values.get(tag), order) for tag, name in COUNTS.items()}
    charset = codes(values.get(CHARSET))
    record |= {name: free_text(values.get(tag), charset) for tag, name in FREE_TEXTS.items()}
    record["contrast"] = " ".join(
        text for tag in CONTRAST_TAGS if (text := free_text(values.get(tag), charset))
    )
    if len(values.get(CONTRAST_SEQUENCE, b"")) > EMPTY_ITEM_BYTES:
        record["contrast"] += " AGENT"
    patient_number, issuer, person, birth = (person_name(values.get(tag)) for tag in PATIENT_TAGS)
    if record["age_years"] is None:
        day = record["acquisition_date"] or plain_text(values.get(STUDY_DATE))
        record["age_years"] = age_between(birth, day)
    for name in REQUIRED_COUNTS:
        record[name] = record[name] or 0
    signed = bool(record.pop("representation"))
    for name in ("padding", "padding_limit"):
        if signed and (record[name] or 0) > 0x7FFF:
            record[name] -= 0x10000
    return Header(
        path=path,
        patient=(patient_number, issuer, person, birth),
        syntax=elements.syntax,
        pixel_offset=elements.pixel_offset,
        pixel_length=elements.pixel_length,
        data_bytes=elements.size,
        signed=signed,
        **record,
    )


Decoder = Callable[[bytes | None], Any]
SOP_CLASS, MODALITY, SERIES_UID = 0x00080016, 0x00080060, 0x0020000E
PATIENT_TAGS = (0x00100020, 0x00100021, 0x00100010, 0x00100030)
TEXTS: dict[int, tuple[str, Decoder]] = {
    SOP_CLASS: ("sop_class", plain_text),
    MODALITY: ("modality", code),
    0x0020000D: ("study_uid", plain_text),
    SERIES_UID: ("series_uid", plain_text),
    0x00080018: ("image_uid", plain_text),
    0x00200052: ("frame_of_reference", plain_text),
    0x00083010: ("event_uid", plain_text),
    0x00080008: ("image_type", codes),
    0x00280301: ("burned_in", code),
    0x00080070: ("manufacturer", maker),
    0x00081090: ("model", device),
    0x00181210: ("kernel", plain_text),
    0x00180060: ("kvp", number),
    0x00180050: ("slice_thickness_mm", number),
    0x00181120: ("tilt_degrees", number),
    0x00185100: ("patient_position", code),
    0x00100040: ("sex", sex),
    0x00101010: ("age_years", age),
    0x00200012: ("acquisition", plain_text),
    0x00080022: ("acquisition_date", plain_text),
    0x00080032: ("acquisition_time", plain_text),
    0x00200100: ("temporal_position", plain_text),
    0x00200013: ("instance_number", number),
    0x00200032: ("position_mm", numbers),
    0x00200037: ("orientation", numbers),
    0x00280030: ("pixel_spacing_mm", numbers),
    0x00280008: ("n_frames", frame_count),
    0x00280004: ("photometric", code),
    0x00281053: ("slope", number),
    0x00281052: ("intercept", number),
    0x00281054: ("rescale_type", code),
    0x00283000: ("has_modality_lut", is_there),
    0x00282110: ("lossy", was_lossy),
}
CHARSET, STUDY_DATE = 0x00080005, 0x00080020
CONTRAST_TAGS = (0x00180010, 0x00181040, 0x00181041, 0x00181048)
CONTRAST_SEQUENCE, EMPTY_ITEM_BYTES = 0x00180012, 8
FREE_TEXTS = {
    0x00081030: "study_description",
    0x0008103E: "series_description",
    0x00181030: "protocol",
    0x00180015: "body_part",
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
WANTED = frozenset((*TEXTS, *COUNTS, *PATIENT_TAGS, *FREE_TEXTS, *CONTRAST_TAGS))
WANTED |= {MEDIA_SOP_CLASS, CHARSET, STUDY_DATE, CONTRAST_SEQUENCE}
"""All that is ever read of a data set."""
