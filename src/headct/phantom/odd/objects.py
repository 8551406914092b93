"""No plain CT slices: other codecs, enhanced images, reports, copies of the screen."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, LegacyConvertedEnhancedCTImageStorage

from headct.phantom import decoys
from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    fresh,
    hu_of,
    new_uid,
    odd,
    put,
    set_pixels,
    setting,
    slices,
    store_as,
    variants,
)
from headct.phantom.odd.files import CODING
from headct.phantom.odd.kinds import BESIDE
from headct.phantom.odd.values import COPIES

STORAGE = "1.2.840.10008.5.1.4.1.1."


def _by_gdcm(name: str, syntax: str) -> None:
    """Encoded by another library than the one that decodes."""

    def write(series: HeadSeries, folder: Path) -> None:
        import gdcm

        put(folder, slices(series))
        for path in sorted(folder.iterdir()):
            reader = gdcm.ImageReader()
            reader.SetFileName(str(path))
            assert reader.Read()
            change = gdcm.ImageChangeTransferSyntax()
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
            change.SetInput(reader.GetImage())
            assert change.Change()
            writer = gdcm.ImageWriter()
            writer.SetFileName(str(path))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            assert writer.Write()

    odd(CODING, "accepted", name=name)(write)


_by_gdcm("jpeg-lossless-first-order", "JPEGLosslessProcess14_1")
_by_gdcm("jpeg-lossless-process-14", "JPEGLosslessProcess14")
_by_gdcm("jpeg-ls-by-gdcm", "JPEGLSLossless")
_by_gdcm("rle-by-gdcm", "RLELossless")


def _enhanced(series: HeadSeries) -> Dataset:
    """All slices as the frames of one Legacy Converted Enhanced CT image.

    Source:
        DICOM PS3.3 A.70; macros of PS3.3 C.7.6.16.2 for the functional groups.
    """
    images = slices(series)
    first = images[0]
    made = deepcopy(first)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = (
        LegacyConvertedEnhancedCTImageStorage
    )
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = new_uid()
    made.SeriesInstanceUID, made.InstanceNumber = new_uid(), 1
    made.NumberOfFrames = len(images)
    measures = _macro(first, "PixelSpacing", "SliceThickness")
    rescale = _macro(first, "RescaleIntercept", "RescaleSlope", "RescaleType")
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [_macro(first, "ImageOrientationPatient")]
    shared.PixelValueTransformationSequence = [rescale]
    for n, image in enumerate(images):
        frame, content = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", n + 1
        frame.FrameContentSequence = [content]
        frame.PlanePositionSequence = [_macro(image, "ImagePositionPatient")]
        frames.append(frame)
    made.SharedFunctionalGroupsSequence = [shared]
    made.PerFrameFunctionalGroupsSequence = frames
    for keyword in MOVED:
        if keyword in made:
            delattr(made, keyword)
    made.PixelData = b"".join(image.PixelData for image in images)
    return made


MOVED: tuple[str, ...] = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
MOVED += ("RescaleIntercept", "RescaleSlope", "RescaleType", "SliceLocation", "SliceThickness")
"""Elements that functional groups hold instead."""


def _macro(image: Dataset, *keywords: str) -> Dataset:
    made = Dataset()
    for keyword in keywords:
        setattr(made, keyword, image[keyword].value)
    return made


@odd(CODING, "accepted")
def enhanced_multi_frame(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    _enhanced(series).save_as(folder / "enhanced")


@odd(CODING, "refused:truncated")
def enhanced_multi_frame_cut_off(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    _enhanced(series).save_as(folder / "enhanced")
    data = (folder / "enhanced").read_bytes()
    (folder / "enhanced").write_bytes(data[: len(data) * 2 // 3])


@odd(CODING, "refused:missing-slices")
def enhanced_with_a_frame_less(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    image = _enhanced(series)
    n, size = int(image.NumberOfFrames), 2 * image.Rows * image.Columns
    image.PixelData = image.PixelData[: 15 * size] + image.PixelData[16 * size :]
    del image.PerFrameFunctionalGroupsSequence[15]
    image.NumberOfFrames = n - 1
    image.save_as(folder / "enhanced")


def _without_image(series: HeadSeries, sop_class: str, modality: str) -> Dataset:
    (pattern,) = slices(series)[:1]
    made = Dataset()
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        setattr(made, keyword, pattern[keyword].value)
    made.SeriesInstanceUID, made.SOPInstanceUID = new_uid(), new_uid()
    made.SOPClassUID, made.Modality = sop_class, modality
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


OBJECTS = {
    "presentation_state": (STORAGE + "11.1", "PR"),
    "key_objects": (STORAGE + "88.59", "KO"),
    "dose_sr": (STORAGE + "88.67", "SR"),
    "rt_structures": (STORAGE + "481.3", "RTSTRUCT"),
    "rt_plan": (STORAGE + "481.5", "RTPLAN"),
    "raw_data": (STORAGE + "66", "CT"),
    "registration": (STORAGE + "66.1", "REG"),
}


@odd(BESIDE, "accepted", *["skipped:not-image"] * (len(OBJECTS) + 2))
def every_object_without_an_image(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    for name, kind in OBJECTS.items():
        put(folder / name, [_without_image(series, *kind)])
    (folder / "sr").write_bytes(decoys.structured_report(series)[0])
    (folder / "pdf.dcm").write_bytes(decoys.encapsulated_pdf(series)[0])


@odd(BESIDE, "accepted", "skipped:directory-file")
def dicomdir(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    listing = Dataset()
    listing.FileSetID = "DISC"
    listing.file_meta = FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    listing.file_meta.MediaStorageSOPInstanceUID = new_uid()
    pydicom.dcmwrite(folder / "DICOMDIR", listing, enforce_file_format=True)


@odd(BESIDE, "accepted", "skipped:not-dicom", "skipped:not-dicom", "refused:unreadable")
def pdf_and_page_and_a_lie(series: HeadSeries, folder: Path) -> None:
    """A PDF is skipped; text that calls itself DICOM is refused, and belongs to no series."""
    put(folder, slices(series))
    (folder / "letter.pdf").write_bytes(decoys.PDF)
    (folder / "index.html").write_text("<html></html>")
    (folder / "notes.dcm").write_text("no scan at all")


@odd(BESIDE, "accepted", "refused:localizer")
def localizer_in_a_series_of_its_own(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    for n, data in enumerate(decoys.localizer(series)):
        (folder / f"scout{n}").write_bytes(data)


def eight_bits(image: Any, _: int) -> None:
    grey = ((hu_of(image) + 200) / 4).clip(0, 255).astype(np.uint8)
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    if "PixelPaddingValue" in image:
        del image.PixelPaddingValue
    set_pixels(image, grey)
    image["PixelData"].VR = "OB"


def in_colour(image: Any, z: int) -> None:
    eight_bits(image, z)
    image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
    image.PhotometricInterpretation = "RGB"
    image.PixelData = np.repeat(np.frombuffer(image.PixelData, np.uint8), 3).tobytes()


variants(COPIES, "refused:eight-bit", eight_bits=eight_bits)
variants(COPIES, "refused:colour", colour=in_colour)
variants(COPIES, "refused:colour", palette=setting(PhotometricInterpretation="PALETTE COLOR"))
variants(COPIES, "refused:monochrome1", inverted=setting(PhotometricInterpretation="MONOCHROME1"))
variants(COPIES, "refused:burned-in-text", text_in_the_pixels=setting(BurnedInAnnotation="YES"))


@odd(COPIES, "accepted", "refused:secondary-capture")
def screen_copies_under_the_same_uid(series: HeadSeries, _: Path) -> Slices:
    copies = fresh(slices(series)[:3], SOPClassUID=STORAGE + "7")
    return slices(series) + copies


@odd(COPIES, "refused:monochrome1")
def one_inverted_slice(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    images[12].PhotometricInterpretation = "MONOCHROME1"
    store_as(images[12], -hu_of(images[12]))
    return images
