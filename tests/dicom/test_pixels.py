from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from headct.dicom.index import index_paths
from headct.dicom.pixels import AIR_HU
from headct.dicom.reasons import Reason
from headct.dicom.series import Stack, read_stacks
from headct.errors import Refusal


def read(folder) -> Stack:
    (series,) = index_paths([folder]).series
    (stack,) = read_stacks(series)
    if isinstance(stack, Refusal):
        raise stack
    return stack


def code_of(folder) -> str:
    with pytest.raises(Refusal) as refused:
        read(folder)
    return refused.value.code


def edit_pixels(change):
    """An edit that applies `change(stored int32) -> stored` to every slice."""

    def edit(dataset, i):
        stored = np.frombuffer(
            dataset.PixelData, "<u2" if not dataset.PixelRepresentation else "<i2"
        )
        dataset.PixelData = change(stored.astype(np.int32)).astype("<i4").astype("<i2").tobytes()

    return edit


@pytest.fixture
def plain_hu(scan):
    return read(scan("plain")).hu


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_every_transfer_syntax_gives_the_same_voxels(scan, plain_hu, syntax):
    assert np.array_equal(read(scan("other", syntax=syntax, n=12)).hu, plain_hu)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("intercept", [0, -8192, -1024])
def test_signed_values_and_any_intercept(scan, plain_hu, syntax, intercept):
    folder = scan("signed", signed=True, bits=16, intercept=intercept, syntax=syntax)
    assert np.array_equal(read(folder).hu, plain_hu)


def test_signed_12_bits_without_sign_extension(scan, plain_hu):
    folder = scan("s", signed=True, bits=12, intercept=0, edit=edit_pixels(lambda s: s & 0x0FFF))
    assert np.array_equal(read(folder).hu, plain_hu)


def test_junk_in_unused_bits_is_masked_and_flagged(scan, plain_hu):
    stack = read(scan("junk", edit=edit_pixels(lambda s: s | 0xA000)))
    assert np.array_equal(stack.hu, plain_hu)
    assert stack.flags == (Reason.UNUSED_BITS,)


def test_values_shifted_to_the_high_bits(scan, plain_hu):
    def shift(dataset, i):
        edit_pixels(lambda s: s << 4)(dataset, i)
        dataset.HighBit = 15

    assert np.array_equal(read(scan("high", edit=shift)).hu, plain_hu)


def test_rescale_of_every_slice_is_its_own(scan, plain_hu):
    def own(dataset, i):
        edit_pixels(lambda s: s + 10 * i)(dataset, i)
        dataset.RescaleIntercept = -1024 - 10 * i

    assert np.array_equal(read(scan("own", edit=own)).hu, plain_hu)


def test_a_broken_slope_is_applied(scan, plain_hu):
    def half(dataset, i):
        edit_pixels(lambda s: 2 * s)(dataset, i)
        dataset.RescaleSlope = "0.5"

    assert np.array_equal(read(scan("half", bits=16, edit=half)).hu, plain_hu)


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding_becomes_air(scan, plain_hu, padding, tagged):
    def pad(dataset, i):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(40, 36).copy()
        stored[:3] = padding
        dataset.PixelData = stored.tobytes()
        if tagged:
            dataset.add_new("PixelPaddingValue", "SS", padding)

    hu = read(scan("pad", signed=True, bits=16, intercept=0, edit=pad)).hu
    assert (hu[:, :3] == AIR_HU).all()
    assert np.array_equal(hu[:, 3:], plain_hu[:, 3:])


def test_padding_in_the_range_of_tissue_counts_only_at_the_border(scan, plain_hu):
    def pad(dataset, i):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(40, 36).copy()
        stored[:2] = 40
        dataset.PixelData = stored.tobytes()
        dataset.add_new("PixelPaddingValue", "SS", 40)

    hu = read(scan("pad", signed=True, bits=16, intercept=0, edit=pad)).hu
    assert (hu[:, :2] == AIR_HU).all()
    assert np.array_equal(hu[:, 2:], plain_hu[:, 2:])


def test_values_beyond_int16_saturate(scan):
    hu = read(scan("wide", bits=16, edit=edit_pixels(lambda s: np.full_like(s, 65535)))).hu
    assert (hu == 32767).all()


def test_lossy_pixels_are_flagged(scan):
    stack = read(scan(edit=lambda dataset, i: setattr(dataset, "LossyImageCompression", "01")))
    assert stack.flags == (Reason.LOSSY,)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("fault", ["cut", "zeroed", "other size"])
def test_damaged_compressed_pixels_refuse_the_series(scan, syntax, fault):
    folder = scan(syntax=syntax)
    victim = folder / "IM0003.dcm"
    at = victim.read_bytes().index(b"\xe0\x7f\x10\x00OB") + 12 + 8
    data = victim.read_bytes()
    if fault == "cut":
        victim.write_bytes(data[:-40])
    elif fault == "zeroed":
        victim.write_bytes(data[: at + 30] + bytes(len(data) - at - 70) + data[-40:])
    else:
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.Rows = 41
            dataset.save_as(path)
    assert code_of(folder) in {
        Reason.TRUNCATED,
        Reason.UNREADABLE,
        Reason.BAD_PIXEL_FORMAT,
        Reason.DAMAGED_MEMBER,
    }


def test_a_file_cut_after_indexing_is_refused(scan):
    folder = scan()
    (series,) = index_paths([folder]).series
    victim = folder / "IM0003.dcm"
    victim.write_bytes(victim.read_bytes()[:-100])
    (refusal,) = read_stacks(series)
    assert isinstance(refusal, Refusal)
    assert refusal.code == Reason.TRUNCATED


def _rle_with(segments: list[bytes]):
    """An edit that stores slice 3 as these RLE segments."""

    def edit(path):
        from pydicom.encaps import encapsulate

        starts = np.cumsum([64, *map(len, segments)])[:-1].tolist()
        table = [len(segments), *starts]
        head = np.array(table + [0] * (16 - len(table)), "<u4").tobytes()
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([head + b"".join(segments)])
        dataset.save_as(path)

    return edit


RUN = b"\x81\x07"  # 128 times 7
WHOLE = RUN * 11 + b"\xe1\x07"  # 1408 + 32 = 40 x 36 pixels


@pytest.mark.parametrize(
    ("segments", "code"),
    [
        ([WHOLE[:-2], WHOLE], Reason.TRUNCATED),
        ([WHOLE[:-1], WHOLE], Reason.TRUNCATED),
        ([WHOLE + RUN, WHOLE], Reason.BAD_PIXEL_FORMAT),
        ([WHOLE, RUN * 50_000], Reason.BAD_PIXEL_FORMAT),
        ([WHOLE], Reason.BAD_PIXEL_FORMAT),
        ([WHOLE] * 3, Reason.BAD_PIXEL_FORMAT),
        ([WHOLE, b""], Reason.UNREADABLE),
        ([WHOLE, WHOLE + b"\0"], ""),
        ([WHOLE, b"\x80" + WHOLE], ""),
    ],
    ids=["short", "cut", "long", "bomb", "one segment", "three", "empty", "padded", "no-op byte"],
)
def test_rle_segments_unpack_to_one_byte_a_pixel(scan, segments, code):
    """Decoders fill what is missing and cut what is more: the length is counted before."""
    folder = scan("rle", syntax=RLELossless)
    _rle_with(segments)(sorted(folder.iterdir())[3])
    if code:
        assert code_of(folder) == code
    else:
        assert (read(folder).hu == 7 * 257 - 1024).all(axis=(1, 2)).sum() == 1
