"""A volume written as a DICOM series is the same volume when it is read."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from headct.phantom.dicom import COMMENT, SeriesHeader, encode_series
from headct.phantom.files import phantom_uid
from headct.volume.read import read_series

SYNTAXES = ("explicit", "deflated", "rle", "jpeg2000")


@pytest.fixture
def header() -> SeriesHeader:
    return SeriesHeader(
        patient_name="Quartz^Wren",
        patient_id="PH0000001",
        birth_date="19500101",
        sex="F",
        age_years=70,
        study_uid=phantom_uid("study"),
        series_uid=phantom_uid("series"),
        date="20200102",
        time="101112",
        accession="A000001",
        manufacturer="SIEMENS",
        model="SOMATOM Definition AS",
        station="CT1",
        kernel="H31s",
        kvp=120,
        slice_thickness_mm=5,
        institution="hospital-a",
    )


def native_affine(tilt_deg: float = 0.0) -> np.ndarray:
    """Rows run backwards, columns to the left, slices upwards; tilted rows, vertical steps."""
    angle = np.radians(tilt_deg)
    affine = np.eye(4)
    affine[:3, 0] = 5, 0, 0
    affine[:3, 1] = -2.5 * np.sin(angle), -2.5 * np.cos(angle), 0
    affine[:3, 2] = 0, 0, -2
    affine[:3, 3] = -40, 40, 38
    return affine


def write_files(folder: Path, files: list[bytes]) -> None:
    for number, file in enumerate(files):
        (folder / f"IM{number:04d}").write_bytes(file)


def blob_volume() -> np.ndarray:
    """Air with a bright corner block: up, in front and on the right of the patient."""
    hu = np.random.default_rng(0).integers(-1024, -900, (12, 36, 40)).astype(np.int16)
    hu[9:11, 12:15, 12:15] = 1500
    return hu


@pytest.mark.parametrize("layout", ["unsigned12", "signed16"])
@pytest.mark.parametrize("tilt_deg", [0.0, -15.0])
def test_read_back_the_same_hu_and_geometry(
    tmp_path: Path, header: SeriesHeader, layout: str, tilt_deg: float
) -> None:
    hu, affine = blob_volume(), native_affine(tilt_deg)
    write_files(tmp_path, encode_series(hu, affine, replace(header, layout=layout)))
    volume = read_series(tmp_path)
    bright = np.argwhere(volume.hu == 1500)
    world = (volume.affine_zyx @ np.c_[bright, np.ones(len(bright))].T)[:3].T
    expected_index = np.argwhere(hu == 1500)
    expected = (affine @ np.c_[expected_index, np.ones(len(expected_index))].T)[:3].T
    np.testing.assert_allclose(sorted(world.tolist()), sorted(expected.tolist()), atol=1e-4)
    assert (world[:, 2] > 0).all(), "what was on the patient's right is on the right"
    np.testing.assert_array_equal(volume.hu[:, 8:28, 10:30], hu[:, 8:28, 10:30])


def test_outside_the_reconstruction_circle_is_padding(header: SeriesHeader) -> None:
    signed = replace(header, layout="signed16")
    image = dcmread(BytesIO(encode_series(blob_volume(), native_affine(), signed)[0]))
    assert image.pixel_array[0, 0] == image.PixelPaddingValue == -2000
    assert image.pixel_array[18, 20] > -2000


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_holds_the_same_pixels(header: SeriesHeader, syntax: str) -> None:
    hu = blob_volume()
    image = dcmread(BytesIO(encode_series(hu, native_affine(), header, syntax)[9]))
    np.testing.assert_array_equal(image.pixel_array.astype(int) - 1024, hu[9])
    assert image.PatientComments == COMMENT


@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg2000"])
def test_valid_by_dciodvfy(tmp_path: Path, header: SeriesHeader, syntax: str) -> None:
    """The Debian build of dciodvfy cannot inflate, so deflated files are left out."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    tilted = replace(header, layout="signed16", tilt_deg=-15.0, contrast_agent="IOHEXOL")
    write_files(tmp_path, encode_series(blob_volume(), native_affine(-15), tilted, syntax)[:1])
    answer = subprocess.run(
        ["dciodvfy", "-new", tmp_path / "IM0000"], capture_output=True, text=True, check=False
    )
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    assert lines == ["CTImage"]


def test_uids_are_a_pure_function_of_their_names() -> None:
    assert phantom_uid(0, "a") == phantom_uid(0, "a") != phantom_uid(0, "b")
    assert len(phantom_uid(0, "a")) <= 64
