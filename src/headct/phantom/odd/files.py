"""Odd files: encodings, compression, damage, names."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import Slices, compressed, odd, put, saved_as, slices

DAMAGE = "zero-byte, truncated header or pixels, element length lie, unknown transfer syntax"
CODING = "no preamble, implicit VR, big endian, deflated, RLE, JPEG lossless, JPEG-LS, JPEG 2000"
NAMES = "pipes, link loops, odd / hostile file names, nested folders, one series over several"
SYNTAX = "1.2.840.10008.1.2"


def _encoded(name: str, syntax: str) -> None:
    def write(series: HeadSeries, folder: Path) -> None:
        saved_as(folder, slices(series), syntax)

    odd(CODING, "accepted", name=name)(write)


_encoded("implicit-little-endian", SYNTAX)
_encoded("explicit-big-endian", SYNTAX + ".2")
_encoded("deflated", SYNTAX + ".1.99")


def _packed(name: str, syntax: str, verdict: str = "accepted", **options: Any) -> None:
    def make(series: HeadSeries, _: Path) -> Slices:
        return compressed(slices(series), syntax, **options)

    odd(CODING, verdict, name=name)(make)


_packed("rle", SYNTAX + ".5")
_packed("jpeg-ls-lossless", SYNTAX + ".4.80")
_packed("jpeg-ls-near-lossless", SYNTAX + ".4.81", "flagged:lossy", jls_error=2)
_packed("jpeg-2000-lossless", SYNTAX + ".4.90")
_packed("jpeg-2000-lossy", SYNTAX + ".4.91", "flagged:lossy", j2k_cr=[5])


@odd(CODING, "accepted")
def mixed_encodings(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    return (
        compressed(images[:10], SYNTAX + ".5")
        + compressed(images[10:20], SYNTAX + ".4.90")
        + images[20:]
    )


@odd(CODING, "accepted")
def without_preamble_and_meta(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    for z, image in enumerate(slices(series)):
        image.file_meta = Dataset()
        from pydicom import dcmwrite

        del image.file_meta
        dcmwrite(
            folder / f"{z}", image, implicit_vr=True, little_endian=True, enforce_file_format=False
        )


@odd(CODING, "accepted")
def private_blobs_and_charsets(series: HeadSeries, _: Path) -> Slices:
    def dress(image: Any, z: int) -> None:
        image.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
        block = image.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", bytes(200_000))
        block.add_new(0x20, "SQ", Sequence([Dataset() for _ in range(20)]))
        image.add_new(0x00091001, "UN", b"\xff\xfe" * 50)
        image.add_new(0x60003000, "OW", bytes(512))

    return slices(series, dress)


@odd(CODING, "accepted")
def wrong_value_representations(series: HeadSeries, folder: Path) -> None:
    """Position as LO, rows as UN: some anonymisers write that."""
    put(folder, slices(series))
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        data = data.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00LO")
        path.write_bytes(data.replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10LO"))


@odd(CODING, "accepted")
def trailing_bytes(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    for path in sorted(folder.iterdir()):
        path.write_bytes(path.read_bytes() + bytes(1000))


@odd(DAMAGE, "refused:damaged-member", "refused:empty-file")
def zero_byte_member(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    (folder / "IM0005.dcm").write_bytes(b"")


@odd(DAMAGE, "refused:damaged-member", "refused:truncated")
def truncated_pixels(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    path = folder / "IM0005.dcm"
    path.write_bytes(path.read_bytes()[:-100])


@odd(DAMAGE, "refused:damaged-member", "refused:truncated")
def truncated_header(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    path = folder / "IM0005.dcm"
    path.write_bytes(path.read_bytes()[:400])


@odd(DAMAGE, "refused:damaged-member", "refused:unreadable")
def text_named_like_a_slice(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    (folder / "IM0005.dcm").write_text("<html>404 not found</html>")


@odd(DAMAGE, "refused:damaged-member", "refused:truncated")
def length_lie(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    path = folder / "IM0005.dcm"
    data = path.read_bytes()
    at = data.rindex(struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OW", 0)) + 8
    path.write_bytes(data[:at] + struct.pack("<I", 0x7FFFFFF0) + data[at + 4 :])


@odd(DAMAGE, "refused:unsupported-transfer-syntax")
def unknown_syntax(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"))


@odd(DAMAGE, "refused:truncated")
def damaged_rle(series: HeadSeries, folder: Path) -> None:
    put(folder, compressed(slices(series), SYNTAX + ".5"))
    for path in sorted(folder.iterdir())[:1]:
        data = path.read_bytes()
        path.write_bytes(data[:-1200] + data[-8:])


@odd(DAMAGE, "refused:unreadable")
def scrambled_jpeg_2000(series: HeadSeries, folder: Path) -> None:
    put(folder, compressed(slices(series), SYNTAX + ".4.90"))
    path = folder / "IM0007.dcm"
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\x4f\xff\x51")
    data[start + 120 : start + 160] = bytes(40)
    path.write_bytes(data)


@odd(DAMAGE, "refused:no-pixel-data")
def no_pixels(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: i.__delattr__("PixelData"))


@odd(DAMAGE, "refused:no-pixel-data")
def empty_pixels(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "PixelData", b""))


@odd(DAMAGE, "accepted", name="one-byte-too-many")
def one_pad(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "PixelData", i.PixelData + b"\0\0"))


@odd(NAMES, "accepted")
def hostile_names(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    odd_names = [
        "\u202egpj.dcm",
        "a b'\"$(rm -rf).dcm",
        "-rf",
        "..dcm",
        "x" * 250,
        "ü\n",
        ".hidden",
    ]
    paths = sorted(folder.iterdir())
    for path, name in zip(paths, odd_names, strict=False):
        path.rename(folder / name)
    os.rename(os.fsencode(paths[-1]), os.fsencode(folder) + b"/\xff\xfe\x01")


@odd(NAMES, "accepted", "skipped:special-file", "skipped:special-file")
def loops_and_pipes(series: HeadSeries, folder: Path) -> None:
    put(folder / "a" / "b", slices(series))
    (folder / "a" / "loop").symlink_to("..")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")


@odd(NAMES, "accepted")
def spread_over_folders(series: HeadSeries, folder: Path) -> None:
    for z, image in enumerate(slices(series)):
        put(folder / f"{z % 7}" / "deep" / "er", [image], name=f"{z}")


@odd(NAMES, "accepted")
def hostile_uids(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    uid = series.header.series_uid.encode()
    evil = b"../../../../tmp/evil".ljust(len(uid), b"x")
    for path in sorted(folder.iterdir()):
        path.write_bytes(path.read_bytes().replace(uid, evil))


@odd(NAMES, "accepted")
def without_study_and_frame_uid(series: HeadSeries, _: Path) -> Slices:
    def strip(image: Any, z: int) -> None:
        del image.StudyInstanceUID, image.FrameOfReferenceUID

    return slices(series, strip)


@odd(NAMES, *["refused:single-slice"] * 31)
def without_series_uid(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: i.__delattr__("SeriesInstanceUID"))


@odd(NAMES, "accepted")
def without_image_uid(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: i.__delattr__("SOPInstanceUID"))
