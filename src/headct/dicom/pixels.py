"""Stored values -> HU: the bytes of a slice, its sign and unused bits, rescale, padding."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from headct.dicom.codestream import decode_frame
from headct.dicom.elements import (
    DEFLATED_LE,
    EXPLICIT_BE,
    NATIVE,
    HeaderError,
    read_elements,
)
from headct.dicom.header import Header
from headct.dicom.reasons import Reason
from headct.errors import Refusal

AIR_HU = -1024
TISSUE_HU = (-900, 3000)
"""A padding value in this range may also be a real value: it counts only at the image's border."""

Int16 = NDArray[np.int16]


def read_stored(header: Header, out: Int16) -> bool:
    """Fill `out` [rows columns] with the stored values as the header means them.

    Sign and unused bits are put right; unsigned 16-bit values come as the same bits.

    Returns:
        Whether there was junk in unused bits.

    Raises:
        Refusal: the file ends early, or its pixels do not decode.
    """
    try:
        if header.syntax in NATIVE:
            _read_native(header, out)
        else:
            np.copyto(out, decode_frame(header).view(np.int16))
    except OSError:
        raise Refusal("a file cannot be read any more", code=Reason.NO_PERMISSION) from None
    return _clean_bits(out, header)


def to_hu(stored: Int16, header: Header) -> None:
    """Stored values -> HU in place; padding, and all that is below air, becomes AIR_HU.

    Source:
        DICOM PS3.3 C.11.1 (modality LUT), C.7.5.1.1.2 (pixel padding).
    """
    slope, intercept = header.slope or 1.0, header.intercept or 0.0
    padded = _padding(stored, header)
    wide = not header.signed and header.bits_stored == 16
    if slope != 1.0 or intercept != int(intercept) or wide or not _fits(stored, int(intercept)):
        values = stored.view(np.uint16) if wide else stored
        hu = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        np.copyto(stored, np.rint(hu).clip(-32768, 32767).astype(np.int16))
    elif intercept:
        np.add(stored, np.int16(intercept), out=stored)
    # a row of the number: many times faster than the number
    np.maximum(stored, np.full(stored.shape[-1], AIR_HU, np.int16), out=stored)
    if padded is not None:
        stored[padded] = AIR_HU


def _fits(stored: Int16, intercept: int) -> bool:
    """No stored value leaves int16 by adding the intercept."""
    low, high = int(stored.min()) + intercept, int(stored.max()) + intercept
    return low >= -32768 and high <= 32767


def _read_native(header: Header, out: Int16) -> None:
    offset = (header.pixel_offset or 0) + (header.frame or 0) * out.nbytes
    if header.syntax == DEFLATED_LE:
        _read_deflated(header, out, offset)
        return
    with open(header.path, "rb", buffering=0) as handle:
        handle.seek(offset)
        if handle.readinto(out.data.cast("B")) != out.nbytes:
            raise Refusal("a file ends inside its pixels", code=Reason.TRUNCATED)
    if header.syntax == EXPLICIT_BE:
        out.byteswap(inplace=True)


def _read_deflated(header: Header, out: Int16, offset: int) -> None:
    try:
        with header.path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            plain = read_elements(handle, size, frozenset()).inflated or b""
    except HeaderError:
        plain = b""
    if len(plain) < offset + out.nbytes:
        raise Refusal("a file ends inside its pixels", code=Reason.TRUNCATED)
    np.copyto(out, np.frombuffer(plain, "<i2", out.size, offset).reshape(out.shape))


def _clean_bits(stored: Int16, header: Header) -> bool:
    """Shift, mask and sign-extend to the stored bits; True where unused bits held junk."""
    bits = header.bits_stored
    shift = header.high_bit + 1 - bits
    if shift and header.syntax in NATIVE:
        raw = stored.view(np.uint16)
        np.right_shift(raw, shift, out=raw)
    if bits == 16:
        return False
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if header.signed else (0, (1 << bits) - 1)
    if stored.min() >= low and stored.max() <= high:
        return False
    junk = (stored < low) | (stored > high)
    if header.padding is not None:
        junk &= stored != np.int64(header.padding).astype(np.int16)
    if not junk.any():
        return False
    np.left_shift(stored, 16 - bits, out=stored)
    values = stored if header.signed else stored.view(np.uint16)
    np.right_shift(values, 16 - bits, out=values)
    return True


def _padding(stored: Int16, header: Header) -> NDArray[np.bool_] | None:
    """Where the pixels are padding that the rescale alone would not turn into air."""
    if header.padding is None:
        return None
    limit = header.padding if header.padding_limit is None else header.padding_limit
    low, high = min(header.padding, limit), max(header.padding, limit)
    slope, intercept = header.slope or 1.0, header.intercept or 0.0
    if high * slope + intercept <= AIR_HU:
        return None
    values = stored if header.signed else stored.view(np.uint16)
    padded = (values >= low) & (values <= high)
    if not padded.any():
        return None
    in_tissue = TISSUE_HU[0] < high * slope + intercept < TISSUE_HU[1]
    return _at_border(padded) if in_tissue else padded


def _at_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of a 2D mask that is connected to the border."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    kept = np.unique(edge[edge > 0])
    return np.isin(labels, kept)
