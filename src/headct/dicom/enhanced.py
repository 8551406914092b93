"""Enhanced multi-frame CT: one file -> one header record per frame, then all goes the same way."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from headct.dicom.codestream import fragments
from headct.dicom.elements import NATIVE
from headct.dicom.header import FileOutcome, Header
from headct.dicom.reasons import Reason, reason_of
from headct.errors import Refusal

SEQUENCES = {
    "PlanePositionSequence": {"position_mm": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"orientation": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {
        "pixel_spacing_mm": "PixelSpacing",
        "slice_thickness_mm": "SliceThickness",
    },
    "PixelValueTransformationSequence": {
        "slope": "RescaleSlope",
        "intercept": "RescaleIntercept",
        "rescale_type": "RescaleType",
    },
    "CTImageFrameTypeSequence": {"image_type": "FrameType"},
    "CTReconstructionSequence": {"kernel": "ConvolutionKernel"},
    "CTXRayDetailsSequence": {"kvp": "KVP"},
    "FrameContentSequence": {
        "temporal_position": "TemporalPositionIndex",
        "acquisition": "FrameAcquisitionNumber",
    },
}
"""Functional group -> field of the header and keyword. Source: DICOM PS3.3 A.38.1.4, C.7.6.16."""
WANTED = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
TUPLES = frozenset({"position_mm", "orientation", "pixel_spacing_mm"})
NUMBERS = frozenset({"slice_thickness_mm", "slope", "intercept", "kvp"})


def expand(header: Header) -> list[Header] | FileOutcome:
    """A header record for every frame of an enhanced image, or why there is none."""
    try:
        shared, frames = _functional_groups(header)
        places = _pixel_places(header, len(frames))
        return [
            replace(header, **{"frame": i, **places[i], **shared, **frame})
            for i, frame in enumerate(frames)
        ]
    except Refusal as refusal:
        return FileOutcome(header.path, reason_of(refusal), refusal.message, header.series_uid)
    except Exception:
        # a parser's error can be of any class, and quotes values
        message = "the functional groups of the frames cannot be read"
        return FileOutcome(header.path, Reason.UNREADABLE, message, header.series_uid)


def _functional_groups(header: Header) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(
            header.path, stop_before_pixels=True, force=True, specific_tags=list(WANTED)
        )
        shared = _fields(next(iter(dataset.get(WANTED[0], None) or []), None))
        frames = [_fields(group) for group in dataset.get(WANTED[1], None) or []]
    if len(frames) != header.n_frames:
        raise Refusal("frames and their descriptions differ in number", code=Reason.NO_GEOMETRY)
    return shared, frames


def _fields(group: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for sequence, names in SEQUENCES.items():
        items = group.get(sequence, None) if group is not None else None
        for name, keyword in names.items():
            value = items[0].get(keyword, None) if items else None
            if value is not None:
                found[name] = _plain(name, value)
    return found


def _plain(name: str, value: Any) -> Any:
    if name in TUPLES:
        return tuple(float(part) for part in value)
    if name in NUMBERS:
        return float(value)
    if name == "image_type":
        return tuple(str(part).strip().upper() for part in value)
    return str(value).strip()


def _pixel_places(header: Header, n_frames: int) -> list[dict[str, Any]]:
    """Where each frame's pixels are; nothing to say for native ones, which lie in a row."""
    if header.syntax in NATIVE:
        return [{}] * n_frames
    with header.path.open("rb") as handle:
        parts = fragments(handle, header.pixel_offset or 0, header.data_bytes)[1:]
    if len(parts) != n_frames:
        raise Refusal(
            "frames of several fragments are not supported",
            code=Reason.UNSUPPORTED_TRANSFER_SYNTAX,
        )
    return [{"pixel_offset": offset, "pixel_length": length} for offset, length in parts]
