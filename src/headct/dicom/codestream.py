"""Compressed frames: fragments of the file -> one codestream -> stored values.

The size that a codestream claims is compared with the header before anything is decoded, so that
a small file cannot ask for much memory, and its end is checked, since decoders fill what is
missing with plausible pixels.
"""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from headct.dicom.elements import ITEM, SEQUENCE_END
from headct.dicom.header import Header
from headct.dicom.reasons import Reason
from headct.errors import Refusal

RLE = "1.2.840.10008.1.2.5"
JPEG_START, J2K_START = b"\xff\xd8", b"\xff\x4f"
END_MARKER = b"\xff\xd9"
SIZ_MARKER = b"\xff\x51"
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
MAX_FRAGMENTS = 100_000
DAMAGE_WORDS = (b"Corrupt JPEG", b"Unsupported marker", b"Premature end")


def decode_frame(header: Header) -> NDArray[Any]:
    """One compressed frame -> stored values, [rows columns], int16 or uint16.

    Raises:
        Refusal: truncated, damaged, or of another size or depth than the header says.
    """
    codestream = _read_codestream(header)
    _require_whole(codestream, header)
    try:
        with _complaints() as complaints:
            values = _decode(codestream, header)
    except MemoryError:
        raise
    except Exception:
        # decoders raise anything, and quote values
        raise Refusal("the compressed pixels do not decode", code=Reason.UNREADABLE) from None
    if any(words in complaints[0] for words in DAMAGE_WORDS):
        raise Refusal("the compressed pixels are damaged", code=Reason.UNREADABLE)
    if values.shape != (header.rows, header.columns) or values.dtype.itemsize != 2:
        raise _other_size()
    return values


@contextmanager
def _complaints() -> Iterator[list[bytes]]:
    """What C code writes to stderr meanwhile: the only way in which libjpeg speaks of damage."""
    said: list[bytes] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            said.append(caught.read(4096))


def fragments(handle: BinaryIO, position: int, size: int) -> list[tuple[int, int]]:
    """Offset and length of each fragment of encapsulated pixels; the offset table comes first.

    Raises:
        Refusal: the fragments do not end inside the file.
    """
    found: list[tuple[int, int]] = []
    while len(found) <= MAX_FRAGMENTS:
        handle.seek(position)
        head = handle.read(8)
        if len(head) < 8:
            break
        group, element, length = struct.unpack("<HHI", head)
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            return found
        if tag != ITEM:
            raise Refusal("fragments of pixels are damaged", code=Reason.UNREADABLE)
        if position + 8 + length > size:
            break
        found.append((position + 8, length))
        position += 8 + length
    raise Refusal("a file ends inside its compressed pixels", code=Reason.TRUNCATED)


def _read_codestream(header: Header) -> bytes:
    offset = header.pixel_offset or 0
    with header.path.open("rb") as handle:
        if header.pixel_length is not None:
            parts = [(offset, header.pixel_length)]
        else:
            parts = fragments(handle, offset, header.data_bytes)[1:]
        pieces = []
        for position, length in parts:
            handle.seek(position)
            pieces.append(handle.read(length))
    return b"".join(pieces)


def _require_whole(codestream: bytes, header: Header) -> None:
    if header.syntax == RLE:
        _require_rle_size(codestream, header)
        return
    claimed = _claimed_size(codestream)
    if claimed is None:
        raise Refusal("the compressed pixels have no readable head", code=Reason.UNREADABLE)
    if claimed != (header.rows, header.columns, 1):
        raise _other_size()
    if END_MARKER not in codestream[-16:]:
        raise Refusal("the compressed pixels end early", code=Reason.TRUNCATED)


def _require_rle_size(codestream: bytes, header: Header) -> None:
    """Every segment must unpack to one byte a pixel: decoders cut what is more, and fill the rest.

    Source:
        DICOM PS3.5 G.3 (PackBits), G.5 (header).
    """
    if len(codestream) < 64:
        raise Refusal("the compressed pixels end early", code=Reason.TRUNCATED)
    n_segments, *starts = struct.unpack_from("<16I", codestream)
    if n_segments != header.bits_allocated // 8:
        raise _other_size()
    stops = [*starts[1:n_segments], len(codestream)]
    wanted = header.rows * header.columns
    for start, stop in zip(starts[:n_segments], stops, strict=True):
        if not 64 <= start < stop <= len(codestream):
            raise Refusal("the compressed pixels are damaged", code=Reason.UNREADABLE)
        n_bytes = _unpacked_bytes(codestream[start:stop], wanted)
        if n_bytes < wanted:
            raise Refusal("the compressed pixels end early", code=Reason.TRUNCATED)
        if n_bytes > wanted + 1:
            raise _other_size()


def _unpacked_bytes(segment: bytes, enough: int) -> int:
    """Bytes that a PackBits segment unpacks to; counting stops a little above `enough`."""
    n_bytes = position = 0
    while position < len(segment) and n_bytes <= enough + 1:
        control = segment[position]
        if control < 128:
            if n_bytes >= enough:
                break  # padding at the end
            n_bytes += min(control + 1, len(segment) - position - 1)
            position += control + 2
        else:
            n_bytes += 257 - control if control > 128 and position + 1 < len(segment) else 0
            position += 2 if control > 128 else 1
    return n_bytes


def _other_size() -> Refusal:
    return Refusal(
        "compressed pixels have another size or depth than the header says",
        code=Reason.BAD_PIXEL_FORMAT,
    )


def _claimed_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns, samples that a JPEG, JPEG-LS or JPEG 2000 codestream says it has."""
    try:
        if codestream[:2] == JPEG_START:
            return _jpeg_size(codestream)
        start = codestream.find(J2K_START + SIZ_MARKER, 0, 4096)
        if start < 0:
            return None
        right, bottom, left, top = struct.unpack_from(">IIII", codestream, start + 8)
        (samples,) = struct.unpack_from(">H", codestream, start + 40)
        return bottom - top, right - left, samples
    except struct.error:
        return None


def _jpeg_size(codestream: bytes) -> tuple[int, int, int] | None:
    position = 2
    while position + 9 < len(codestream):
        mark, kind, length = struct.unpack_from(">BBH", codestream, position)
        if mark != 0xFF:
            return None
        if kind == 0xFF:
            position += 1
        elif kind in FRAME_MARKERS:
            rows, columns, samples = struct.unpack_from(">HHB", codestream, position + 5)
            return rows, columns, samples
        else:
            position += 2 + length
    return None


def _decode(codestream: bytes, header: Header) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, _ = get_decoder(header.syntax).as_array(
            encapsulate([codestream]),
            index=0,
            raw=True,
            rows=header.rows,
            columns=header.columns,
            number_of_frames=1,
            samples_per_pixel=1,
            photometric_interpretation=header.photometric,
            bits_allocated=header.bits_allocated,
            bits_stored=header.bits_stored,
            pixel_representation=int(header.signed),
            pixel_keyword="PixelData",
        )
    return np.asarray(values)
