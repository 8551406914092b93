"""A rendered scan -> the files of one real DICOM CT series: header, geometry, stored values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from headct.phantom.files import SeriesEncoder, phantom_uid, recompress

COMMENT = "Synthetic phantom, no living person"
INTERCEPT_HU = -1024
PADDING_STORED = -2000
"""Stored value outside the reconstruction circle, where the scanner writes one."""

TransferSyntax = Literal["explicit", "deflated", "rle", "jpeg2000"]
PixelLayout = Literal["unsigned12", "signed16"]

_COMPRESSED = {"rle": RLELossless, "jpeg2000": JPEG2000Lossless}


@dataclass(frozen=True)
class SeriesHeader:
    """What the header of one series says; all of it fictitious.

    Attributes:
        date: of the study, `YYYYMMDD`; `time` is `HHMMSS`.
        tilt_deg: what GantryDetectorTilt says; the geometry itself is in the affine.
        layout: `unsigned12` is HU + 1024; `signed16` is the same, signed, with PADDING_STORED
            outside the reconstruction circle.
    """

    patient_name: str
    patient_id: str
    birth_date: str
    sex: str
    age_years: int
    study_uid: str
    series_uid: str
    date: str
    time: str
    accession: str
    manufacturer: str
    model: str
    station: str
    kernel: str
    kvp: float
    slice_thickness_mm: float
    institution: str
    study_description: str = "CT Head without contrast"
    series_description: str = "Axial soft tissue"
    body_part: str = "HEAD"
    series_number: int = 2
    tilt_deg: float = 0.0
    contrast_agent: str = ""
    mas: float = 250.0
    layout: PixelLayout = "unsigned12"


def encode_series(
    hu: NDArray[np.int16],
    affine_zyx: NDArray[np.float64],
    header: SeriesHeader,
    transfer_syntax: TransferSyntax = "explicit",
) -> list[bytes]:
    """The series as the contents of its files, in order of the slices.

    Args:
        hu: [z y x]; y grows with the row, x with the column of the stored images.
        affine_zyx: voxel index (z, y, x, 1) -> (S, A, R, 1) in mm; z may be sheared (tilt).
        header: everything that is the same in all files.
        transfer_syntax: how the files are stored; all are lossless.
    """
    positions, orientation, spacing = _plane_geometry(affine_zyx, len(hu))
    first = _series_dataset(header, hu.shape[1:], orientation, spacing)
    deflated = transfer_syntax == "deflated"
    syntax = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    encoder = SeriesEncoder(first, syntax)
    stored = _stored_values(hu, header.layout)
    uids = [phantom_uid(header.series_uid, z) for z in range(len(hu))]
    files = [
        encoder.file(uid, z + 1, position, pixels.tobytes())
        for z, (uid, position, pixels) in enumerate(zip(uids, positions, stored, strict=True))
    ]
    if transfer_syntax in _COMPRESSED:
        return [recompress(file, _COMPRESSED[transfer_syntax]) for file in files]
    return files


def patient_dataset(header: SeriesHeader) -> Dataset:
    """The patient, study and equipment modules, which every object of a study shares."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = header.patient_name
    ds.PatientID = header.patient_id
    ds.PatientBirthDate = header.birth_date
    ds.PatientSex = header.sex
    ds.PatientAge = f"{header.age_years:03d}Y"
    ds.PatientComments = COMMENT
    ds.StudyInstanceUID = header.study_uid
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = header.date
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = header.time
    ds.AccessionNumber = header.accession
    ds.StudyID = header.accession[-4:]
    ds.StudyDescription = header.study_description
    ds.ReferringPhysicianName = ""
    ds.InstitutionName = header.institution
    ds.Manufacturer = header.manufacturer
    ds.ManufacturerModelName = header.model
    ds.StationName = header.station
    ds.SoftwareVersions = "1.0"
    ds.DeviceSerialNumber = "0"
    return ds


def _series_dataset(
    header: SeriesHeader,
    shape_yx: tuple[int, ...],
    orientation: list[str],
    spacing: list[str],
) -> Dataset:
    """All elements that the files of a series share."""
    ds = patient_dataset(header)
    ds.SOPClassUID = CTImageStorage
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.AcquisitionDate, ds.AcquisitionTime = header.date, header.time
    ds.Modality = "CT"
    ds.SeriesDescription = header.series_description
    ds.ProtocolName = "Head routine"
    ds.BodyPartExamined = header.body_part
    ds.PatientPosition = "HFS"
    ds.SeriesInstanceUID = header.series_uid
    ds.SeriesNumber = header.series_number
    ds.AcquisitionNumber = 1
    ds.FrameOfReferenceUID = phantom_uid(header.study_uid, "frame")
    ds.PositionReferenceIndicator = ""
    ds.ImageOrientationPatient = orientation
    _add_acquisition(ds, header, float(spacing[0]) * shape_yx[0])
    _add_pixel_format(ds, header.layout, shape_yx, spacing)
    return ds


def _add_acquisition(ds: Dataset, header: SeriesHeader, field_mm: float) -> None:
    ds.ScanOptions = "AXIAL MODE"
    ds.KVP = f"{header.kvp:g}"
    ds.SliceThickness = f"{header.slice_thickness_mm:g}"
    ds.DataCollectionDiameter = "500"
    ds.ReconstructionDiameter = f"{field_mm:g}"
    ds.GantryDetectorTilt = f"{header.tilt_deg:g}"
    ds.TableHeight = "150"
    ds.RotationDirection = "CW"
    ds.ExposureTime = "1000"
    ds.XRayTubeCurrent = f"{header.mas:.0f}"
    ds.Exposure = f"{header.mas:.0f}"
    ds.FilterType = "HEAD FILTER"
    ds.ConvolutionKernel = header.kernel
    if header.contrast_agent:
        ds.ContrastBolusAgent = header.contrast_agent
        ds.ContrastBolusRoute = "INTRAVENOUS"


def _add_pixel_format(
    ds: Dataset, layout: PixelLayout, shape_yx: tuple[int, ...], spacing: list[str]
) -> None:
    signed = layout == "signed16"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = shape_yx
    ds.PixelSpacing = spacing
    ds.BitsAllocated = 16
    ds.BitsStored = 16 if signed else 12
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(signed)
    if signed:
        ds.add_new("PixelPaddingValue", "SS", PADDING_STORED)
    ds.RescaleIntercept = str(INTERCEPT_HU)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "80"


def _plane_geometry(
    affine_zyx: NDArray[np.float64], n_slices: int
) -> tuple[Iterator[list[str]], list[str], list[str]]:
    """Positions, orientation and spacing as DICOM says them: patient LPS, (x, y, z), mm.

    Source:
        DICOM PS3.3 C.7.6.2.1.1, read backwards; `volume.affine_from_dicom` is the way there.
    """
    affine_xyz = np.asarray(affine_zyx, dtype=np.float64)[np.ix_([2, 1, 0, 3], [2, 1, 0, 3])]
    affine_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_xyz
    columns, rows, step, origin = affine_lps[:3].T
    column_mm, row_mm = np.linalg.norm(columns), np.linalg.norm(rows)
    positions = (_decimals(origin + z * step) for z in range(n_slices))
    orientation = _decimals([*(columns / column_mm), *(rows / row_mm)])
    return positions, orientation, _decimals([row_mm, column_mm])


def _decimals(values: Any) -> list[str]:
    """DICOM decimal strings (16 characters at most), to a millionth; no negative zero."""
    return [f"{round(float(value), 6) + 0.0:.6f}" for value in values]


def _stored_values(hu: NDArray[np.int16], layout: PixelLayout) -> NDArray[Any]:
    stored = hu - np.int16(INTERCEPT_HU)
    if layout == "unsigned12":
        return stored.clip(0, 4095).astype("<u2")
    y, x = (np.linspace(-1, 1, n) for n in hu.shape[1:])
    outside = y[:, None] ** 2 + x[None, :] ** 2 > 1
    return np.where(outside, np.int16(PADDING_STORED), stored).astype("<i2")
