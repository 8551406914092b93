from __future__ import annotations

import contextlib
import io
import zlib

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.dicom.elements import Elements, HeaderError, MalformedError, read_elements
from headct.dicom.header import WANTED, FileOutcome, Header, header_from, read_header
from headct.dicom.index import read_images
from headct.dicom.series import SeriesFiles, read_stacks


def test_the_quick_reader_agrees_with_pydicom_on_every_real_file(real_data):
    n = 0
    for path in sorted(real_data.glob("odd_dicom/*/*")):
        header = read_header(path) if path.is_file() else None
        if not isinstance(header, Header):
            continue
        dataset = pydicom.dcmread(path, force=True)
        assert header.rows == dataset.get("Rows", 0), path.name
        assert header.series_uid == dataset.get("SeriesInstanceUID", "")
        assert header.position_mm == _floats(dataset.get("ImagePositionPatient"))
        assert header.orientation == _floats(dataset.get("ImageOrientationPatient"))
        assert header.padding == dataset.get("PixelPaddingValue")
        assert header.intercept == dataset.get("RescaleIntercept")
        assert (header.pixel_offset is None) == ("PixelData" not in dataset)
        n += 1
    assert n > 20


def _floats(values):
    return tuple(float(value) for value in values) if values else None


@pytest.mark.parametrize(
    ("raw", "years"),
    [
        (b"034Y", 34.0),
        (b"006M", 0.5),
        (b"099Y", 90.0),
        (b"", None),
        (b"34", None),
        (b"\xb234Y", None),
        (b"9" * 5000 + b"Y", None),
    ],
)
def test_ages_that_are_none_are_not_known(tmp_path, raw, years):
    assert header_from(tmp_path, Elements({0x00101010: raw})).age_years == years


def test_a_deflate_bomb_is_stopped():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(140)) + packer.flush()
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    data = bytes(128) + b"DICM" + meta + bomb
    with pytest.raises(MalformedError):
        read_elements(io.BytesIO(data), len(data), WANTED)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_behind_a_preamble_are_read_or_refused(data):
    data = bytes(128) + b"DICM" + data
    with contextlib.suppress(HeaderError):
        read_elements(io.BytesIO(data), len(data), WANTED)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12))
def test_a_mutated_file_never_crashes(tmp_path_factory, seed, n):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    original = _small_file(folder)
    data = bytearray(original)
    for k in range(n):
        place = (seed * (2 * k + 1) + 7919 * k * k) % len(data)
        data[place] = (seed >> (k % 24)) & 0xFF
    path = folder / "mutated.dcm"
    path.write_bytes(bytes(data))
    images = read_images(path)
    if not isinstance(images, FileOutcome):
        read_stacks(SeriesFiles(tuple(images)), min_slices=1)


def _small_file(folder, cache={}) -> bytes:  # noqa: B006
    if not cache:
        folder.mkdir()
        dataset = pydicom.data.get_testdata_file("CT_small.dcm", read=True)
        dataset.save_as(folder / "small.dcm")
        cache["bytes"] = (folder / "small.dcm").read_bytes()
    return cache["bytes"]
