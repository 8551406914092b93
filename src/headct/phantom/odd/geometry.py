"""Odd geometry: order, gaps, duplicates, tilt, orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    fresh,
    moved,
    odd,
    pixels,
    placed,
    put,
    resampled,
    set_pixels,
    setting,
    slices,
    variants,
)

BAD = "missing position, orientation or pixel spacing; zero, absurd, non-numeric"
COPIES = "exact duplicates"
CLASH = "same UID or same position with other content"
GAPS = "one or more slices missing, non-uniform spacing"
TURNS = "gantry tilt, oblique, prone, feet first, caudal order"

variants(
    BAD,
    "refused:no-geometry",
    no_position=setting(ImagePositionPatient=None),
    no_orientation=setting(ImageOrientationPatient=None),
    no_spacing=setting(PixelSpacing=None),
    only_imager_spacing=setting(PixelSpacing=None, ImagerPixelSpacing=[1, 1]),
    empty_position=setting(ImagePositionPatient=""),
)
variants(
    BAD,
    "refused:bad-geometry",
    zero_spacing=setting(PixelSpacing=[0, 0]),
    negative_spacing=setting(PixelSpacing=[-1, 1]),
    spacing_in_metres=setting(PixelSpacing=[0.0005, 0.0005]),
    one_spacing=setting(PixelSpacing="1"),
    absurd_position=setting(ImagePositionPatient=[0, 0, 1e6]),
    two_positions=setting(ImagePositionPatient=[0, 0]),
    parallel_axes=setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    skew_axes=setting(ImageOrientationPatient=[1, 0, 0, 0.2, 0.9798, 0]),
    long_axes=setting(ImageOrientationPatient=[2, 0, 0, 0, 2, 0]),
    zero_axes=setting(ImageOrientationPatient=[0] * 6),
)


@odd(BAD, "refused:duplicate-conflict")
def all_at_one_position(series: HeadSeries, _: Path) -> Slices:
    return slices(series, setting(ImagePositionPatient=[0, 0, 0]))


@odd(BAD, "refused:no-geometry")
def one_slice_without_position(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setting(ImagePositionPatient=None)(i, z) if z == 9 else None)


@odd(BAD, "accepted")
def thickness_location_and_numbers_that_lie(series: HeadSeries, _: Path) -> Slices:
    def lie(image: Any, z: int) -> None:
        image.SliceThickness, image.SliceLocation = "1", -7 * z
        image.InstanceNumber, image.SpacingBetweenSlices = (z * 11) % 31, "-3"
        image.GantryDetectorTilt = "25"

    return slices(series, lie)


@odd(COPIES, "flagged:duplicates-dropped")
def same_files_twice(series: HeadSeries, folder: Path) -> None:
    put(folder / "a", slices(series))
    put(folder / "b", slices(series))


@odd(COPIES, "flagged:duplicates-dropped")
def same_slices_under_new_uids(series: HeadSeries, _: Path) -> Slices:
    return slices(series) + fresh(slices(series)[4:9])


@odd(COPIES, "flagged:duplicates-dropped")
def sent_again_with_other_private_tags(series: HeadSeries, folder: Path) -> None:
    put(folder / "a", slices(series))
    again = slices(series, setting(InstanceCreationTime="101010", StationName="PACS2"))
    put(folder / "b", again)


@odd(CLASH, "refused:conflict")
def one_uid_for_all(series: HeadSeries, _: Path) -> Slices:
    return slices(series, setting(SOPInstanceUID="1.2.3.4"))


@odd(CLASH, "refused:duplicate-conflict")
def second_sweep_without_any_tag_that_tells(series: HeadSeries, _: Path) -> Slices:
    again = fresh(slices(series))
    for image in again:
        set_pixels(image, pixels(image) + 40)
    return slices(series) + again


@odd(CLASH, "refused:duplicate-conflict")
def one_pixel_differs(series: HeadSeries, _: Path) -> Slices:
    (other,) = fresh(slices(series)[7:8])
    stored = pixels(other)
    stored[30, 30] += 1
    set_pixels(other, stored)
    return [*slices(series), other]


@odd(GAPS, "refused:missing-slices")
def one_slice_missing(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    return images[:14] + images[15:]


@odd(GAPS, "refused:missing-slices")
def every_third_slice_missing(series: HeadSeries, _: Path) -> Slices:
    return [image for z, image in enumerate(slices(series)) if z % 3]


@odd(GAPS, "refused:missing-slices")
def lower_half_far_away(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (0, 0, -60)) if z < 12 else None)


@odd(GAPS, "refused:missing-slices")
def upper_half_of_every_second(series: HeadSeries, _: Path) -> Slices:
    """Thin below, double steps above: two protocols in one, and both are needed."""
    return slices(series)[:16] + slices(series)[17::2]


@odd(GAPS, "refused:non-uniform-spacing")
def step_grows(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (0, 0, 0.05 * z * z)))


@odd(GAPS, "refused:non-uniform-spacing")
def jitter_of_a_third(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (0, 0, 2.0 * (z % 2))))


@odd(GAPS, "accepted")
def rounded_to_a_tenth(series: HeadSeries, _: Path) -> Slices:
    def rounded(image: Any, z: int) -> None:
        image.ImagePositionPatient = [f"{float(v):.1f}" for v in image.ImagePositionPatient]

    return slices(series, rounded)


@odd(GAPS, "refused:bad-geometry")
def table_moves_sideways(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (25 * (z > 15), 0, 0)))


TILT = np.radians(18)
TILTED = np.array([[1, 0, 0], [0, np.cos(TILT), 0], [0, np.sin(TILT), 1]])
"""Columns: along a row, down a column, table."""
OBLIQUE = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
PRONE = np.diag([-1.0, -1.0, 1.0])
SHAPE, MM = (34, 64, 64), (6.0, 4.0, 4.0)


@odd(TURNS, "flagged:gantry-tilt")
def gantry_tilted_back(series: HeadSeries, _: Path) -> Slices:
    return resampled(series, TILTED, SHAPE, MM)


@odd(TURNS, "flagged:gantry-tilt")
def gantry_tilted_forward(series: HeadSeries, _: Path) -> Slices:
    turn = TILTED.copy()
    turn[2, 1] *= -1
    return resampled(series, turn, SHAPE, MM)


@odd(TURNS, "accepted")
def oblique_without_shear(series: HeadSeries, _: Path) -> Slices:
    return resampled(series, OBLIQUE, SHAPE, MM)


@odd(TURNS, "accepted")
def prone(series: HeadSeries, _: Path) -> Slices:
    images = resampled(series, PRONE, SHAPE, MM)
    for image in images:
        image.PatientPosition = "HFP"
    return images


@odd(TURNS, "accepted")
def on_the_side(series: HeadSeries, _: Path) -> Slices:
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    return resampled(series, turn, SHAPE, MM)


@odd(TURNS, "accepted")
def feet_first(series: HeadSeries, _: Path) -> Slices:
    turn = np.diag([-1.0, 1.0, -1.0])
    images = resampled(series, turn, SHAPE, MM)
    for image in images:
        image.PatientPosition = "FFS"
    return images


@odd(TURNS, "accepted")
def mirrored_rows_as_seen_from_above(series: HeadSeries, _: Path) -> Slices:
    return resampled(series, np.diag([-1.0, 1.0, 1.0]), SHAPE, MM)


@odd(TURNS, "accepted")
def numbered_from_the_vertex_down(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "InstanceNumber", 100 - z))


@odd(TURNS, "accepted")
def more_columns_than_rows(series: HeadSeries, _: Path) -> Slices:
    return resampled(series, np.eye(3), (34, 80, 96), (6.0, 3.5, 2.9))


@odd(TURNS, "accepted")
def rows_twice_as_far_apart_as_columns(series: HeadSeries, _: Path) -> Slices:
    return resampled(series, np.eye(3), (34, 36, 96), (6.0, 7.5, 3.0))


@odd(TURNS, "refused:not-axial")
def coronal_stack(series: HeadSeries, _: Path) -> Slices:
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, -1.0, 0]]).T
    return resampled(series, turn.T, (40, 50, 60), (6.0, 4.0, 4.0))


@odd(TURNS, "refused:not-axial")
def sagittal_stack(series: HeadSeries, _: Path) -> Slices:
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, -1.0, 0]])
    return resampled(series, turn, (40, 50, 60), (4.5, 4.0, 4.0))


@odd(TURNS, "refused:bad-geometry")
def shear_of_sixty_degrees(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (0, 10.4 * z, 0)))


@odd(TURNS, "accepted")
def positions_far_from_the_origin(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: moved(i, (300, -900, 1500)))


@odd(TURNS, "accepted")
def direction_cosines_with_few_digits(series: HeadSeries, _: Path) -> Slices:
    images = placed(slices(series), np.eye(3))
    return [
        setting(ImageOrientationPatient=[1, 0.0004, 0, 0, 0.9999, 0])(i, 0) or i for i in images
    ]
