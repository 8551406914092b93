"""Several volumes, or several patients, under one UID."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    fresh,
    moved,
    new_uid,
    odd,
    pixels,
    resampled,
    set_pixels,
    setting,
    slices,
)
from headct.phantom.odd.geometry import coronal_stack

SPLIT = "slices of different matrix, spacing or orientation; several reconstructions"
PATIENTS = "two patients under one UID; empty PatientID"


@odd(SPLIT, "refused:missing-slices", "refused:single-slice")
def one_slice_of_another_matrix(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    set_pixels(images[10], pixels(images[10])[:32])
    return images


@odd(SPLIT, "flagged:split-series", "skipped:not-chosen")
def two_kernels(series: HeadSeries, _: Path) -> Slices:
    return slices(series) + fresh(slices(series), ConvolutionKernel="H70h")


@odd(SPLIT, "flagged:split-series", "skipped:not-chosen")
def thick_and_thin(series: HeadSeries, _: Path) -> Slices:
    thin = resampled(series, np.eye(3), (62, 64, 64), (3.0, 4.0, 4.0))
    return slices(series) + fresh(
        thin, SliceThickness="3", PixelSpacing=slices(series)[0].PixelSpacing
    )


@odd(SPLIT, "flagged:split-series", "flagged:split-series")
def two_time_points(series: HeadSeries, _: Path) -> Slices:
    later = fresh(slices(series), AcquisitionTime="180000", AcquisitionNumber=2)
    for image in later:
        set_pixels(image, pixels(image) + 3)
    return slices(series) + later


@odd(SPLIT, "flagged:split-series", "flagged:contrast,split-series")
def before_and_after_contrast(series: HeadSeries, _: Path) -> Slices:
    after = fresh(slices(series), ContrastBolusAgent="IOHEXOL", AcquisitionTime="180000")
    return slices(series) + after


@odd(SPLIT, "flagged:split-series", "refused:not-axial")
def axial_and_coronal(series: HeadSeries, folder: Path) -> Slices:
    return slices(series) + fresh(coronal_stack(series, folder))


@odd(SPLIT, "flagged:split-series", "flagged:split-series")
def two_frames_of_reference(series: HeadSeries, _: Path) -> Slices:
    other = fresh(slices(series), FrameOfReferenceUID=new_uid(), AcquisitionTime="180000")
    for image in other:
        moved(image, (3, 0, 1))
    return slices(series) + other


@odd(SPLIT, "accepted")
def every_rotation_is_an_acquisition(series: HeadSeries, _: Path) -> Slices:
    def count(image: Any, z: int) -> None:
        image.AcquisitionNumber, image.AcquisitionTime = z // 4, f"1010{z // 4:02d}"

    return slices(series, count)


@odd(SPLIT, *["refused:too-few-slices"] * 20)
def perfusion_like_forty_times_two_slices(series: HeadSeries, _: Path) -> Slices:
    images: Slices = []
    for t in range(20):
        images += fresh(
            slices(series)[14:16], TemporalPositionIdentifier=t, AcquisitionTime=f"1010{t:02d}"
        )
    return images


@odd(PATIENTS, "refused:mixed-patients")
def two_patient_ids(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "PatientID", "OTHER" if z > 20 else "ONE"))


@odd(PATIENTS, "refused:mixed-patients")
def two_birth_dates_without_ids(series: HeadSeries, _: Path) -> Slices:
    def other(image: Any, z: int) -> None:
        image.PatientID, image.PatientBirthDate = "", "19200101" if z > 20 else "19500101"

    return slices(series, other)


@odd(PATIENTS, "flagged:no-patient-id")
def empty_patient_id(series: HeadSeries, _: Path) -> Slices:
    return slices(series, setting(PatientID=""))


@odd(PATIENTS, "accepted")
def patient_name_in_two_spellings(series: HeadSeries, _: Path) -> Slices:
    def spelt(image: Any, z: int) -> None:
        image.PatientName = "Doe^Jane" if z % 2 else "DOE^JANE ^^"

    return slices(series, spelt)


@odd(PATIENTS, "flagged:suspect-slice")
def slice_of_another_patient(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    stored = pixels(images[15])
    set_pixels(images[15], np.roll(np.roll(stored, 9, 0)[:, ::-1], 12, 1))
    return images


@odd(PATIENTS, "flagged:suspect-slice")
def two_slices_swapped(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    a, b = pixels(images[8]), pixels(images[20])
    set_pixels(images[8], b)
    set_pixels(images[20], a)
    return images
