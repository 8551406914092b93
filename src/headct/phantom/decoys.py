"""Series and objects that lie in every archive and are no head CT.

Each function makes the files of one series or object from a head scan of the same study.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

from headct.phantom.dicom import SeriesHeader, TransferSyntax, encode_series, patient_dataset
from headct.phantom.files import edited, file_bytes, meta_header, phantom_uid

PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
CT_ONLY = frozenset(
    {"RescaleIntercept", "RescaleSlope", "RescaleType", "KVP", "Exposure", "ExposureTime"}
    | {"XRayTubeCurrent", "FilterType", "RotationDirection", "TableHeight", "ConvolutionKernel"}
    | {"GantryDetectorTilt", "DataCollectionDiameter", "ReconstructionDiameter"}
)
NOTE = b"Remember to send the second half of this archive.\n"


@dataclass(frozen=True)
class HeadSeries:
    """A head CT series before it is encoded: what decoys and faults are made from."""

    hu: NDArray[np.int16]
    affine_zyx: NDArray[np.float64]
    header: SeriesHeader
    transfer_syntax: TransferSyntax = "explicit"

    def files(self) -> list[bytes]:
        """The files of the series as it is."""
        return encode_series(self.hu, self.affine_zyx, self.header, self.transfer_syntax)

    def beside(self, name: str, **changes: Any) -> HeadSeries:
        """Another series of the same study, with its own UID and number."""
        header = replace(
            self.header,
            series_uid=phantom_uid(self.header.series_uid, name),
            series_number=900,
            series_description=name,
        )
        return replace(self, header=replace(header, **changes))


def localizer(series: HeadSeries) -> list[bytes]:
    """A lateral scout: one projection, sagittal, typed LOCALIZER."""
    mean = series.hu.astype(np.float32).mean(axis=2)
    scout = np.repeat(np.flipud(mean), 2, axis=0)[None].astype(np.int16)
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = -1, -1, 1, 1
    plain = replace(series.beside("Scout"), hu=scout, affine_zyx=affine).files()

    def change(image: Dataset, _: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        del image.RescaleType

    return edited(plain, change)


def dose_report(series: HeadSeries) -> list[bytes]:
    """A page of dose figures as a colour screen copy with Modality CT."""
    page = np.zeros((64, 96, 3), dtype=np.uint8)
    page[8:56:8, 8:88] = 255
    header = series.beside("Dose Report").header
    image = _object(header, SecondaryCaptureImageStorage, "CT")
    image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    image.ConversionType = "WSD"
    image.BurnedInAnnotation = "YES"
    image.BodyPartExamined, image.PatientOrientation = "HEAD", ""
    image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
    image.PhotometricInterpretation = "RGB"
    image.Rows, image.Columns = page.shape[:2]
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = page.tobytes()
    return [file_bytes(image)]


def mr_series(series: HeadSeries) -> list[bytes]:
    """The same head as an MR series."""
    inverse = replace(series.beside("T1 axial"), hu=(600 - series.hu // 2).astype(np.int16))

    def change(image: Dataset, _: int) -> None:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.Modality = "MR"
        image.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "NONE", ""
        image.MRAcquisitionType, image.EchoTime, image.RepetitionTime = "2D", "10", "500"
        image.EchoTrainLength, image.MagneticFieldStrength = 1, "1.5"
        for name in CT_ONLY:
            delattr(image, name)

    return edited(inverse.files(), change)


def structured_report(series: HeadSeries) -> list[bytes]:
    """A basic text SR: the radiologist's words, no image."""
    report = _object(series.beside("Report").header, BasicTextSRStorage, "SR")
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ReferencedPerformedProcedureStepSequence = Sequence([])
    report.PerformedProcedureCodeSequence = Sequence([])
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.ConceptNameCodeSequence = Sequence([_code("18748-4", "LN", "Diagnostic imaging report")])
    text = Dataset()
    text.RelationshipType, text.ValueType = "CONTAINS", "TEXT"
    text.ConceptNameCodeSequence = Sequence([_code("121071", "DCM", "Finding")])
    text.TextValue = "No comparison."
    report.ContentSequence = Sequence([text])
    return [file_bytes(report)]


def encapsulated_pdf(series: HeadSeries) -> list[bytes]:
    """A scanned form inside a DICOM object."""
    form = _object(series.beside("Form").header, EncapsulatedPDFStorage, "OT")
    form.AcquisitionDateTime = form.StudyDate + form.StudyTime
    form.ConversionType = "SD"
    form.BurnedInAnnotation = "YES"
    form.DocumentTitle, form.MIMETypeOfEncapsulatedDocument = "Form", "application/pdf"
    form.ConceptNameCodeSequence = Sequence([])
    form.EncapsulatedDocument = PDF + b"\n" * (len(PDF) % 2)
    return [file_bytes(form)]


def chest(series: HeadSeries) -> list[bytes]:
    """A chest, and the header says so."""
    return _body(series.beside("Chest", body_part="CHEST"), _chest_hu)


def chest_as_head(series: HeadSeries) -> list[bytes]:
    """A chest whose header says HEAD: only the content tells."""
    return _body(series.beside("Axial 5mm"), _chest_hu)


def knee(series: HeadSeries) -> list[bytes]:
    """A knee, and the header says so."""

    def change(image: Dataset, _: int) -> None:
        image.Laterality = "R"

    return edited(_body(series.beside("Knee", body_part="KNEE"), _knee_hu), change)


def water_phantom(series: HeadSeries) -> list[bytes]:
    """The physicist's water cylinder, scanned with the head protocol."""
    return _body(series.beside("QA"), _water_hu)


def coronal(series: HeadSeries) -> list[bytes]:
    """A coronal stack, reconstructed by the scanner."""
    reformat = series.beside("Coronal")
    hu = np.ascontiguousarray(series.hu.transpose(1, 0, 2)[:, ::-1])
    top = series.affine_zyx @ [len(series.hu) - 1, 0, 0, 1]
    affine = series.affine_zyx[:, [1, 0, 2, 3]] * [1, -1, 1, 1]
    affine[:, 3] = top
    return replace(reformat, hu=hu, affine_zyx=affine).files()


def _object(header: SeriesHeader, sop_class: UID, modality: str) -> Dataset:
    """A dataset of one file with everything but its content."""
    ds = patient_dataset(header)
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = phantom_uid(header.series_uid, 0)
    ds.Modality = modality
    ds.SeriesInstanceUID = header.series_uid
    ds.SeriesNumber, ds.InstanceNumber = header.series_number, 1
    ds.SeriesDescription = header.series_description
    ds.file_meta = meta_header(sop_class, ds.SOPInstanceUID, ExplicitVRLittleEndian)
    return ds


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


_HuOf = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]


def _body(series: HeadSeries, hu_of: _HuOf) -> list[bytes]:
    """The series with another body in it; coordinates of `hu_of` run over -1..1 (z, y, x)."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in series.hu.shape]
    hu = hu_of(*np.meshgrid(*axes, indexing="ij", sparse=True))
    noise = np.random.default_rng(len(axes[0])).normal(0, 8, series.hu.shape)
    return replace(series, hu=(hu + noise).clip(-1024, 3071).astype(np.int16)).files()


def _ellipse(y: Any, x: Any, at_yx: tuple[float, float], radii_yx: tuple[float, float]) -> Any:
    return ((y - at_yx[0]) / radii_yx[0]) ** 2 + ((x - at_yx[1]) / radii_yx[1]) ** 2 < 1


def _chest_hu(z: Any, y: Any, x: Any) -> NDArray[Any]:
    hu = np.where(_ellipse(y, x, (0, 0), (0.7, 0.95)) & (z > -2), 50.0, -1000.0)
    wall = _ellipse(y, x, (0, 0), (0.66, 0.9)) & ~_ellipse(y, x, (0, 0), (0.6, 0.84))
    hu[wall & (np.sin(9 * z + 4 * y) > 0.2)] = 300
    for side in (-0.42, 0.42):
        hu[_ellipse(y, x, (0, side), (0.5, 0.32)) & (z > -2)] = -820
    hu[_ellipse(y, x, (0.45, 0), (0.14, 0.12)) & (z > -2)] = 350
    hu[_ellipse(y, x, (-0.15, 0.1), (0.3, 0.25)) & (z > -2)] = 45
    return hu


def _knee_hu(z: Any, y: Any, x: Any) -> NDArray[Any]:
    hu = np.where(_ellipse(y, x, (0, 0), (0.55, 0.5)) & (z > -2), 40.0, -1000.0)
    bone = _ellipse(y, x, (0.05, 0), (0.28, 0.34)) & (np.abs(z) > 0.05)
    hu[bone] = 250
    hu[_ellipse(y, x, (-0.42, 0), (0.09, 0.16)) & (z > -2)] = 400
    return hu


def _water_hu(z: Any, y: Any, x: Any) -> NDArray[Any]:
    return np.where(_ellipse(y, x, (0, 0), (0.8, 0.8)) & (np.abs(z) < 0.9), 0.0, -1000.0)
