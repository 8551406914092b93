"""Is an image a CT slice whose values can be turned into HU? Decided by its header alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from headct.dicom.elements import NATIVE
from headct.dicom.header import Header
from headct.dicom.reasons import Reason

Fault = tuple[Reason, str]

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CLASSES = frozenset({f"{CT_CLASS}.1", f"{CT_CLASS}.2"})
CT_CLASSES = ENHANCED_CLASSES | {CT_CLASS}
SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
IMAGELESS_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}." for n in (9, 11, 66, 88, 104, 481))
SEGMENTATION_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"

LOCALIZERS = frozenset({"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"})
SCREENS = frozenset(
    {"SCREEN SAVE", "SCREENSAVE", "SCREEN_CAPTURE", "DOSEINFO", "DOSE_INFO", "RESULTS"}
    | {"DOSE REPORT", "DOSE_REPORT", "REF_SURVIEW", "PROTOCOL"}
)
COMPUTED = re.compile(
    r"\b(MIP|MINIP|MAXIP|MAX IP|MIN IP|PROJECTION|VRT|VR|3D|SSD|RENDERING|RENDERED"
    r"|PERFUSION|RCBF|RCBV|CBF|CBV|MTT|TTP|TTD|TMAX|SUBTRACT|SUBTRACTION|CURVED|CPR|SEGMENTED"
    r"|SUM OF SLICES|MATERIAL|IODINE|VNC|VUE|EFF ATOMIC NUM|RHO|ELECTRON DENSITY|PARAMETRIC)\b"
)
"""In ImageType, or in the description of a derived series: the values are no plain CT numbers."""
SPECTRAL = re.compile(r"\b(MONOENERGETIC|MONOENERGY|MONO E|MONO|MONO\+|VMI|KEV|\d+ ?KEV)\b")
REFORMATS = re.compile(r"\b(MPR|REFORMATTED|REFORMAT|RESAMPLED|AVERAGE)\b")

LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 93, 203))

MAX_SIDE = 4096
MAX_FRAMES = 20_000
MAX_VOXELS = 1 << 30
HU_TYPES = frozenset({"", "HU"})


def check_kind(header: Header) -> Fault | None:
    """Why an image is no CT image with whole, decodable pixels; None where it is one."""
    return _check_size(header) or _check_modality(header) or _check_type(header)


def check_values(header: Header) -> Fault | None:
    """Why the stored values of a CT image cannot become HU; None where they can."""
    return _check_format(header) or _check_rescale(header)


def is_reformat(header: Header) -> bool:
    """The slices were computed from others, not reconstructed from the scan."""
    return _is_derived(header) or REFORMATS.search(_words(header.image_type)) is not None


def is_spectral(header: Header) -> bool:
    """A virtual image of one energy."""
    text = (*header.image_type, *(_described(header) if _is_derived(header) else ()))
    return SPECTRAL.search(_words(text)) is not None


def _is_derived(header: Header) -> bool:
    return header.image_type[:1] == ("DERIVED",)


def _described(header: Header) -> tuple[str, str]:
    return header.series_description, header.protocol


def _words(texts: Iterable[str]) -> str:
    """Capital words with single spaces; signs and underscores divide words."""
    return re.sub(r"[^A-Z0-9+]+", " ", " / ".join(texts).upper())


def is_lossy(header: Header) -> bool:
    """The pixels were, or may have been, compressed with loss."""
    return header.lossy or header.syntax in LOSSY_SYNTAXES


def _is_imageless(header: Header) -> bool:
    if header.sop_class.startswith(IMAGELESS_CLASSES):
        return header.sop_class != SEGMENTATION_CLASS
    return header.pixel_offset is None and header.rows == 0


def _check_size(header: Header) -> Fault | None:
    if _is_imageless(header):
        return Reason.NOT_IMAGE, ""
    rows, columns, frames = header.rows, header.columns, header.n_frames
    if not frames >= 1 or math.isinf(frames):
        return Reason.BAD_PIXEL_FORMAT, "the number of frames is not a number above zero"
    if max(rows, columns) > MAX_SIDE or frames > MAX_FRAMES or rows * columns * frames > MAX_VOXELS:
        return Reason.TOO_LARGE, f"{rows} x {columns} pixels, {frames:.0f} frames"
    if header.pixel_offset is None or header.pixel_length == 0:
        return Reason.NO_PIXEL_DATA, ""
    if rows < 2 or columns < 2:
        return Reason.BAD_PIXEL_FORMAT, f"{rows} x {columns} pixels"
    if header.pixel_length is None:
        return None
    if header.pixel_offset + header.pixel_length > header.data_bytes:
        short = header.pixel_offset + header.pixel_length - header.data_bytes
        return Reason.TRUNCATED, f"{short} bytes of pixels are missing"
    wanted = rows * columns * int(frames) * header.samples * header.bits_allocated // 8
    if header.syntax in NATIVE and header.pixel_length < wanted:
        return Reason.TRUNCATED, f"{wanted - header.pixel_length} bytes of pixels are missing"
    return None


def _check_modality(header: Header) -> Fault | None:
    is_ct = header.modality == "CT"
    colour = header.samples > 1 or header.photometric == "PALETTE COLOR"
    kind = "colour pixels" if colour else ""
    if header.sop_class.startswith(SECONDARY_CAPTURE_CLASS) and (is_ct or colour):
        return Reason.SECONDARY_CAPTURE, kind
    if header.sop_class in CT_CLASSES:
        if header.modality and not is_ct:
            return Reason.MODALITY_CONFLICT, "a CT image class with another modality"
    elif is_ct and header.sop_class:
        return Reason.MODALITY_CONFLICT, "modality CT with the image class of another"
    elif not is_ct:
        return Reason.NOT_CT, _safe_modality(header.modality)
    if colour:
        return Reason.COLOUR, ""
    return None


def _safe_modality(modality: str) -> str:
    known = re.fullmatch("[A-Z]{2}|RTIMAGE|RTDOSE|RTSTRUCT|RTPLAN|SEG|IVUS|HC", modality)
    return f"modality {modality}" if known else "no modality CT"


def _check_type(header: Header) -> Fault | None:
    parts = set(header.image_type)
    if parts & SCREENS:
        return Reason.SECONDARY_CAPTURE, "a screen copy or dose page"
    if parts & LOCALIZERS:
        return Reason.LOCALIZER, ""
    texts = (*header.image_type, *(_described(header) if _is_derived(header) else ()))
    if COMPUTED.search(_words(texts)):
        return Reason.DERIVED_IMAGE, "a projection, rendering or parametric map"
    if header.burned_in == "YES":
        return Reason.BURNED_IN_TEXT, ""
    return None


def _check_format(header: Header) -> Fault | None:
    if header.photometric == "MONOCHROME1":
        return Reason.MONOCHROME1, ""
    if header.bits_allocated == 8:
        return Reason.EIGHT_BIT, ""
    if header.bits_allocated != 16 or not 8 < header.bits_stored <= 16:
        bits = f"{header.bits_allocated} bits allocated, {header.bits_stored} stored"
        return Reason.BAD_PIXEL_FORMAT, bits
    if not header.bits_stored - 1 <= header.high_bit <= 15:
        return Reason.BAD_PIXEL_FORMAT, f"high bit {header.high_bit}"
    if header.sop_class == CT_CLASS and header.n_frames > 1:
        return Reason.BAD_PIXEL_FORMAT, "several frames in a single-frame image class"
    if header.syntax not in NATIVE and not _decodes(header.syntax):
        return Reason.UNSUPPORTED_TRANSFER_SYNTAX, ""
    is_frame = header.frame is not None
    if not is_frame and (header.pixel_length is None) == (header.syntax in NATIVE):
        return Reason.UNREADABLE, "pixels are not stored as the transfer syntax says"
    return None


def _check_rescale(header: Header) -> Fault | None:
    slope, intercept = header.slope, header.intercept
    if slope is None or intercept is None:
        return Reason.NO_RESCALE, "CT numbers cannot be known without it"
    if not (1e-3 <= slope <= 100 and abs(intercept) <= 70_000):
        return Reason.BAD_RESCALE, ""
    if header.rescale_type not in HU_TYPES:
        return Reason.NOT_HU, "RescaleType names another unit"
    if header.has_modality_lut:
        return Reason.NOT_HU, "a modality lookup table beside the rescale"
    return None


@lru_cache
def _decodes(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,40}", syntax) is None:
        # pydicom would warn, and quote it
        return False
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False
