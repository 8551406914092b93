"""Planted faults: head CT series and files that are damaged in a known way.

Every fault names the outcome that ingest must come to; the list goes into `truth/planted.csv`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset

from headct.dicom.reasons import Reason
from headct.phantom import decoys
from headct.phantom.decoys import HeadSeries
from headct.phantom.files import edited, phantom_uid

Files = list[bytes]


@dataclass(frozen=True)
class Fault:
    """One planted thing.

    Attributes:
        name: kebab-case, for people.
        reason: what ingest must say about it.
        plant: a head series -> the files to write instead of it, or beside it.
        replaces: the files stand for the head series; False: they lie beside the whole series.
        per_file: ingest speaks about the file, not about a series.
    """

    name: str
    reason: Reason
    plant: Callable[[HeadSeries], Files]
    replaces: bool = True
    per_file: bool = False


def missing_slice(series: HeadSeries) -> Files:
    """Two slices in the middle never arrived."""
    files = series.files()
    middle = len(files) // 2
    return files[: middle - 1] + files[middle + 1 :]


def uneven_steps(series: HeadSeries) -> Files:
    """The upper half has one and a half times the step."""
    half = len(series.hu) // 2
    tops = [_position(series, half + 1.5 * (z - half)) for z in range(half, len(series.hu))]

    def change(image: Dataset, z: int) -> None:
        if z >= half:
            image.ImagePositionPatient = tops[z - half]

    return edited(series.files(), change)


def single_slice(series: HeadSeries) -> Files:
    """Only one slice was sent."""
    return series.files()[len(series.hu) // 2 :][:1]


def exact_duplicates(series: HeadSeries) -> Files:
    """Three files were sent twice."""
    files = series.files()
    return files + files[4:7]


def doubled_position(series: HeadSeries) -> Files:
    """Two slices exist a second time with other pixels and UIDs of their own."""
    files = series.files()

    def change(image: Dataset, z: int) -> None:
        image.SOPInstanceUID = phantom_uid(series.header.series_uid, "again", z)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.PixelData = image.PixelData[::-1]

    return files + edited(files[5:7], change)


def one_uid_two_images(series: HeadSeries) -> Files:
    """One image UID with two contents."""
    files = series.files()

    def change(image: Dataset, _: int) -> None:
        image.PixelData = image.PixelData[::-1]

    return files + edited(files[5:6], change)


def truncated_file(series: HeadSeries) -> Files:
    """One file ends in the middle of its pixels."""
    files = series.files()
    files[3] = files[3][: len(files[3]) * 2 // 3]
    return files


def length_lie(series: HeadSeries) -> Files:
    """The pixels of one file claim to be 2 GB long."""
    files = series.files()
    start = files[3].rindex(struct.pack("<HH2sH", 0x7FE0, 0x0010, b"OW", 0)) + 8
    files[3] = files[3][:start] + struct.pack("<I", 0x7FFFFFFE) + files[3][start + 4 :]
    return files


def zero_bytes(_: HeadSeries) -> Files:
    """A file of no bytes."""
    return [b""]


def text_note(_: HeadSeries) -> Files:
    """A note that somebody left in the folder."""
    return [decoys.NOTE]


def pdf_file(_: HeadSeries) -> Files:
    """A plain PDF file."""
    return [decoys.PDF]


def mixed_orientations(series: HeadSeries) -> Files:
    """Axial and coronal images under one series UID."""
    coronal = edited(decoys.coronal(series), _under(series))
    return series.files() + coronal


def two_patients(series: HeadSeries) -> Files:
    """The upper half belongs to another patient."""
    half = len(series.hu) // 2

    def change(image: Dataset, z: int) -> None:
        if z >= half:
            image.PatientID, image.PatientName = f"{series.header.patient_id}X", "Other^Person"

    return edited(series.files(), change)


def with_contrast(series: HeadSeries) -> Files:
    """The header names a contrast agent."""
    return _relabelled(series, contrast_agent="IOHEXOL", study_description="CT Head with contrast")


def bone_kernel(series: HeadSeries) -> Files:
    """Reconstructed for bone: edges enhanced."""
    hu = series.hu.astype(np.float32)
    around = sum(np.roll(hu, shift, axis) for axis in (1, 2) for shift in (-1, 1)) / 4
    sharp = (hu + 1.5 * (hu - around)).clip(-1024, 3071).astype(np.int16)
    return _relabelled(replace(series, hu=sharp), kernel="H70h", series_description="Axial bone")


def infant(series: HeadSeries) -> Files:
    """The header says one year."""
    return _relabelled(series, age_years=1)


def no_patient_id(series: HeadSeries) -> Files:
    """PatientID is empty."""
    return _relabelled(series, patient_id="")


def vertex_cut(series: HeadSeries) -> Files:
    """The top of the head was not scanned."""
    return series.files()[: len(series.hu) * 7 // 10]


def wrong_calibration(series: HeadSeries) -> Files:
    """A scanner that is 200 HU off."""
    return _with(series, RescaleIntercept="-1224")


def slope_zero(series: HeadSeries) -> Files:
    """RescaleSlope is 0."""
    return _with(series, RescaleSlope="0")


def constant_image(series: HeadSeries) -> Files:
    """All pixels are the same."""
    blank = replace(series, hu=np.zeros_like(series.hu))
    return _relabelled(blank, layout="unsigned12")


def eight_bit(series: HeadSeries) -> Files:
    """A copy through the brain window in eight bits."""
    window = ((series.hu.astype(np.float32) / 80).clip(0, 1) * 255).astype(np.uint8)

    def change(image: Dataset, z: int) -> None:
        image.BitsAllocated = image.BitsStored = 8
        image.HighBit, image.PixelRepresentation = 7, 0
        image.PixelData = window[z].tobytes()
        if "PixelPaddingValue" in image:
            del image.PixelPaddingValue

    return edited(series.files(), change)


def _position(series: HeadSeries, z: float) -> list[str]:
    s, a, r, _ = series.affine_zyx @ [z, 0, 0, 1]
    return [f"{-r:.6f}", f"{-a:.6f}", f"{s:.6f}"]


def _relabelled(series: HeadSeries, **changes: object) -> Files:
    return replace(series, header=replace(series.header, **changes)).files()  # type: ignore[arg-type]


def _with(series: HeadSeries, **elements: object) -> Files:
    """The series with some elements set; None removes one."""

    def change(image: Dataset, _: int) -> None:
        for name, value in elements.items():
            if value is None:
                delattr(image, name)
            else:
                setattr(image, name, value)

    return edited(series.files(), change)


def _under(series: HeadSeries) -> Callable[[Dataset, int], None]:
    def change(image: Dataset, _: int) -> None:
        image.SeriesInstanceUID = series.header.series_uid

    return change


def _lacking(*names: str) -> Callable[[HeadSeries], Files]:
    return lambda series: _with(series, **dict.fromkeys(names))


def _setting(**elements: object) -> Callable[[HeadSeries], Files]:
    return lambda series: _with(series, **elements)


_ALL = (
    Fault("localizer", Reason.LOCALIZER, decoys.localizer, replaces=False),
    Fault("dose-report", Reason.SECONDARY_CAPTURE, decoys.dose_report, replaces=False),
    Fault("structured-report", Reason.NOT_IMAGE, decoys.structured_report, False, per_file=True),
    Fault("encapsulated-pdf", Reason.NOT_IMAGE, decoys.encapsulated_pdf, False, per_file=True),
    Fault("zero-byte-file", Reason.EMPTY_FILE, zero_bytes, False, per_file=True),
    Fault("text-file", Reason.NOT_DICOM, text_note, False, per_file=True),
    Fault("pdf-file", Reason.NOT_DICOM, pdf_file, False, per_file=True),
    Fault("coronal-series", Reason.NOT_AXIAL, decoys.coronal, replaces=False),
    Fault("mr-series", Reason.NOT_CT, decoys.mr_series),
    Fault("modality-conflict", Reason.MODALITY_CONFLICT, _setting(Modality="MR")),
    Fault("chest", Reason.OTHER_BODY_PART, decoys.chest),
    Fault("chest-tagged-head", Reason.NOT_HEAD, decoys.chest_as_head),
    Fault("knee", Reason.OTHER_BODY_PART, decoys.knee),
    Fault("water-phantom", Reason.NOT_HEAD, decoys.water_phantom),
    Fault("single-slice", Reason.SINGLE_SLICE, single_slice),
    Fault("missing-slices", Reason.MISSING_SLICES, missing_slice),
    Fault("uneven-steps", Reason.NON_UNIFORM_SPACING, uneven_steps),
    Fault("exact-duplicates", Reason.DUPLICATES_DROPPED, exact_duplicates),
    Fault("doubled-position", Reason.DUPLICATE_CONFLICT, doubled_position),
    Fault("one-uid-two-images", Reason.CONFLICT, one_uid_two_images),
    Fault("truncated-file", Reason.DAMAGED_MEMBER, truncated_file),
    Fault("length-lie", Reason.DAMAGED_MEMBER, length_lie),
    Fault("mixed-orientations", Reason.SPLIT_SERIES, mixed_orientations),
    Fault("two-patients", Reason.MIXED_PATIENTS, two_patients),
    Fault("no-patient-id", Reason.NO_PATIENT_ID, no_patient_id),
    Fault("no-rescale", Reason.NO_RESCALE, _lacking("RescaleSlope", "RescaleIntercept")),
    Fault("slope-zero", Reason.BAD_RESCALE, slope_zero),
    Fault("wrong-calibration", Reason.IMPLAUSIBLE_HU, wrong_calibration),
    Fault("constant-image", Reason.CONSTANT_IMAGE, constant_image),
    Fault("eight-bit", Reason.EIGHT_BIT, eight_bit),
    Fault("no-position", Reason.NO_GEOMETRY, _lacking("ImagePositionPatient")),
    Fault("no-orientation", Reason.NO_GEOMETRY, _lacking("ImageOrientationPatient")),
    Fault("no-pixels", Reason.NO_PIXEL_DATA, _lacking("PixelData")),
    Fault("lossy", Reason.LOSSY, _setting(LossyImageCompression="01")),
    Fault("monochrome1", Reason.MONOCHROME1, _setting(PhotometricInterpretation="MONOCHROME1")),
    Fault("burned-in-text", Reason.BURNED_IN_TEXT, _setting(BurnedInAnnotation="YES")),
    Fault("projection", Reason.DERIVED_IMAGE, _setting(ImageType=["DERIVED", "SECONDARY", "MIP"])),
    Fault("reformat", Reason.REFORMATTED, _setting(ImageType=["DERIVED", "SECONDARY", "MPR"])),
    Fault("contrast", Reason.CONTRAST, with_contrast),
    Fault("bone-kernel", Reason.BONE_KERNEL, bone_kernel),
    Fault("vertex-cut", Reason.VERTEX_CUT, vertex_cut),
    Fault("infant", Reason.CHILD, infant),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
"""By name. Source: RELIABILITY section 1, as far as it goes."""
