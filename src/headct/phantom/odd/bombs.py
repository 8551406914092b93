"""Odd files that ask for more memory than there is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import Slices, compressed, odd, put, saved_as, slices
from headct.phantom.odd.files import SYNTAX

BOMBS = "decompression bombs, 65535 x 65535, 2^31 frames, 3000 nested sequences"


@odd(BOMBS, "refused:too-large")
def sixty_five_thousand_square(series: HeadSeries, _: Path) -> Slices:
    def grow(image: Any, z: int) -> None:
        image.Rows = image.Columns = 65535

    return slices(series, grow)


@odd(BOMBS, "refused:too-large")
def two_to_the_31_frames(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "NumberOfFrames", 2**31 - 1))


@odd(BOMBS, "refused:bad-pixel-format")
def minus_one_frame(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "NumberOfFrames", -1))


@odd(BOMBS, "refused:unreadable")
def three_thousand_nested_sequences(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    item = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    (image,) = slices(series)[:1]
    put(folder, [image])
    path = folder / "IM0000.dcm"
    data = path.read_bytes()
    at = data.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(data[:at] + item * 3000 + data[at:])


@odd(BOMBS, "refused:unreadable")
def inflates_to_gigabytes(series: HeadSeries, folder: Path) -> None:
    import zlib

    saved_as(folder, slices(series)[:1], SYNTAX + ".1.99")
    path = folder / "0"
    data = path.read_bytes()
    at = data.index(b"1.2.840.10008.1.2.1.99") + 22
    at += data[at:].index(b"HEADCT_PHANTOM") + 14 if b"HEADCT_PHANTOM" in data[at:] else 0
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    path.write_bytes(data[:at] + body)


@odd(BOMBS, "refused:bad-pixel-format")
def jpeg_2000_that_claims_more(series: HeadSeries, folder: Path) -> None:
    put(folder, compressed(slices(series), SYNTAX + ".4.90"))
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        at = data.index(b"\xff\x4f\xff\x51") + 8
        data[at : at + 8] = struct.pack(">II", 60000, 60000)
        path.write_bytes(data)


@odd(BOMBS, "refused:bad-pixel-format")
def rle_that_repeats_for_ever(series: HeadSeries, folder: Path) -> None:
    from pydicom.encaps import encapsulate

    images = compressed(slices(series), SYNTAX + ".5")
    head = struct.pack("<16I", 2, 64, 64 + 200_000, *[0] * 13)
    bomb = head + b"\x81\x00" * 100_000 + b"\x81\x00" * 100_000
    images[3].PixelData = encapsulate([bomb])
    put(folder, images)
