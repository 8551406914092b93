"""A small analytic head written as DICOM by pydicom, with faults planted on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

LANDMARKS_LPS = np.array([[-30.0, -25.0, 20.0], [22.0, -40.0, -10.0], [10.0, 35.0, 5.0]])
"""Right front top, left front low, left back: no symmetry maps them onto themselves."""
LANDMARK_HU = (700, 1100, 1500)
RADIUS_MM = 9.0

Edit = Callable[[Dataset, int], None]


def phantom_hu(points_lps: np.ndarray) -> np.ndarray:
    """HU of the phantom at points [... 3]: air, an ellipsoid of tissue, three dense balls."""
    hu = np.full(points_lps.shape[:-1], -1000.0)
    hu[((points_lps / (70, 85, 60)) ** 2).sum(-1) < 1] = 40
    for centre, value in zip(LANDMARKS_LPS, LANDMARK_HU, strict=True):
        hu[((points_lps - centre) ** 2).sum(-1) < RADIUS_MM**2] = value
    return hu


def write_scan(
    folder: Path,
    *,
    n: int = 12,
    rows: int = 40,
    columns: int = 36,
    spacing: tuple[float, float] = (5.0, 4.5),
    step_mm: float = 10.0,
    axes: np.ndarray | None = None,
    shear: Sequence[float] = (0.0, 0.0),
    syntax: str = ExplicitVRLittleEndian,
    signed: bool = False,
    bits: int = 12,
    intercept: float = -1024,
    edit: Edit | None = None,
    suffix: str = ".dcm",
    series_uid: str | None = None,
    shuffle_seed: int = 0,
) -> Path:
    """Write one series; `edit(dataset, i)` changes slice i before it is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    turn = np.eye(3) if axes is None else axes
    step = turn[2] * step_mm + turn[0] * shear[0] + turn[1] * shear[1]
    first = -(
        turn[0] * spacing[1] * (columns - 1) / 2
        + turn[1] * spacing[0] * (rows - 1) / 2
        + step * (n - 1) / 2
    )
    names = np.random.default_rng(shuffle_seed).permutation(n)
    uids = {key: generate_uid() for key in ("study", "series", "frame")}
    j, i = np.mgrid[:rows, :columns][..., None]
    for k in range(n):
        origin = first + k * step
        points = origin + i * spacing[1] * turn[0] + j * spacing[0] * turn[1]
        dataset = _slice(phantom_hu(points), intercept, bits, signed)
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uids["study"], uids["frame"]
        dataset.SeriesInstanceUID = series_uid or uids["series"]
        dataset.ImagePositionPatient = [f"{mm:.6f}" for mm in origin]
        dataset.ImageOrientationPatient = [f"{x:.8f}" for x in (*turn[0], *turn[1])]
        dataset.PixelSpacing = list(spacing)
        dataset.InstanceNumber = int(names[k])
        if edit is not None:
            edit(dataset, k)
        save(dataset, folder / f"IM{names[k]:04d}{suffix}", syntax)
    return folder


def _slice(hu: np.ndarray, intercept: float, bits: int, signed: bool) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "PLANTED^NAME", "PLANTED-ID"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, intercept, "HU"
    dataset.ConvolutionKernel, dataset.SliceThickness = "H30", "5"
    set_pixels(dataset, (hu - intercept).astype("<i2"))
    return dataset


def set_pixels(dataset: Dataset, stored: np.ndarray) -> None:
    dataset.PixelData = stored.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path, syntax: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    if pydicom.uid.UID(syntax).is_compressed and not pydicom.uid.UID(syntax).is_deflated:
        dataset.compress(syntax)
    else:
        meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="session")
def phantom() -> SimpleNamespace:
    """The writer and the truth of its phantom."""
    return SimpleNamespace(write=write_scan, landmarks=LANDMARKS_LPS, values=LANDMARK_HU)


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    """`scan(name="series", **options)` writes a series into a folder of its own."""

    def write(name: str = "series", **options: Any) -> Path:
        return write_scan(tmp_path / name, **options)

    return write
