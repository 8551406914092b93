"""What lies in the scanner: other bodies and things, parts of heads, small heads, padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import Slices, fresh, hu_of, odd, setting, slices, store_as
from headct.phantom.odd.geometry import CLASH, COPIES, GAPS
from headct.phantom.odd.kinds import OTHER, RULES
from headct.phantom.odd.several import PATIENTS

Paint = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _thing(name: str, verdict: str, paint: Paint) -> None:
    """Something else than a head: `paint(y_mm, x_mm, z_mm)` gives its HU."""

    def make(series: HeadSeries, _: Path) -> Slices:
        noise = np.random.default_rng(len(name))

        def change(image: Any, z: int) -> None:
            y, x = (np.mgrid[: image.Rows, : image.Columns] - 31.5) * 4.05
            hu = paint(y, x, 6.0 * (z - 15))
            store_as(image, hu + noise.normal(0, 4, hu.shape))

        return slices(series, change)

    odd(OTHER, verdict, name=name)(make)


def _disc(y: np.ndarray, x: np.ndarray, at: tuple[float, float], radius: float) -> np.ndarray:
    return np.hypot(y - at[0], x - at[1]) < radius


def _layers(*layers: tuple[np.ndarray, float]) -> np.ndarray:
    hu = np.full(layers[0][0].shape, -1000.0)
    for where, value in layers:
        hu[where] = value
    return hu


_thing(
    "water-with-a-bony-shell",
    "refused:not-head",
    lambda y, x, z: _layers((_disc(y, x, (0, 0), 95), 700), (_disc(y, x, (0, 0), 88), 0)),
)
_thing(
    "brain-like-plastic-with-a-shell",
    "refused:not-head",
    lambda y, x, z: _layers((_disc(y, x, (0, 0), 80), 1100), (_disc(y, x, (0, 0), 72), 35)),
)
_thing(
    "quality-phantom-with-inserts",
    "refused:not-head",
    lambda y, x, z: _layers(
        (_disc(y, x, (0, 0), 100), 0),
        (_disc(y, x, (50, 0), 12), 955),
        (_disc(y, x, (-50, 0), 12), -95),
        (_disc(y, x, (0, 50), 12), 120),
    ),
)
_thing(
    "abdomen-with-bright-aorta",
    "refused:not-head",
    lambda y, x, z: _layers(
        ((y / 95) ** 2 + (x / 125) ** 2 < 1, -90),
        ((y / 80) ** 2 + (x / 110) ** 2 < 1, 55),
        (_disc(y, x, (30, 8), 12), 330),
        (_disc(y, x, (58, 0), 20), 400),
    ),
)
_thing(
    "two-thighs",
    "refused:not-head",
    lambda y, x, z: _layers(
        (_disc(y, x, (0, -60), 55) | _disc(y, x, (0, 60), 55), 50),
        (_disc(y, x, (0, -60), 15) | _disc(y, x, (0, 60), 15), 1200),
        (_disc(y, x, (0, -60), 7) | _disc(y, x, (0, 60), 7), -70),
    ),
)
_thing(
    "fat-only",
    "refused:not-head",
    lambda y, x, z: _layers((_disc(y, x, (0, 0), 90), -95)),
)
_thing("empty-table", "refused:not-head", lambda y, x, z: _layers((abs(y - 90) < 10, 60)))
_thing(
    "metal-block", "refused:implausible-hu", lambda y, x, z: _layers((abs(y) + abs(x) < 90, 3000))
)


def _cropped(name: str, verdict: str, rows: slice, columns: slice) -> None:
    """A small field of view: the rest of the head is not in the image."""

    def make(series: HeadSeries, _: Path) -> Slices:
        return slices(series, lambda i, z: store_as(i, hu_of(i)[rows, columns]))

    odd(RULES, verdict, name=name)(make)


_cropped("half-a-head", "refused:not-head", slice(None), slice(32, None))
_cropped("no-forehead", "flagged:partial-head", slice(16, None), slice(None))
_cropped("one-temporal-bone", "refused:not-head", slice(28, 48), slice(34, 52))
_cropped("brain-only", "refused:not-head", slice(24, 40), slice(24, 40))


@odd(RULES, "flagged:partial-head,vertex-cut")
def skull_base_only(series: HeadSeries, _: Path) -> Slices:
    return slices(series)[:8]


@odd(RULES, "accepted")
def small_head_of_an_infant(series: HeadSeries, _: Path) -> Slices:
    """Two thirds of the size: the criteria ask for age, the content for a head."""

    def shrink(image: Any, z: int) -> None:
        spacing = float(image.PixelSpacing[0]) * 0.7
        image.PixelSpacing = [f"{spacing:.6f}"] * 2
        at = [float(v) for v in image.ImagePositionPatient]
        image.ImagePositionPatient = [f"{0.7 * v:.6f}" for v in at]

    return slices(series, shrink)


@odd(RULES, "flagged:partial-head")
def five_centimetres_of_brain(series: HeadSeries, _: Path) -> Slices:
    return slices(series)[-14:]


@odd(CLASH, "refused:duplicate-conflict")
def half_a_millimetre_apart(series: HeadSeries, _: Path) -> Slices:
    """A second sweep, nearly at the same positions: never every second slice of it."""
    again = fresh(slices(series), AcquisitionNumber=None, AcquisitionTime=None)
    first = slices(series, setting(AcquisitionNumber=None, AcquisitionTime=None))
    for image in again:
        store_as(image, hu_of(image) + 5)
        x, y, z = (float(v) for v in image.ImagePositionPatient)
        image.ImagePositionPatient = [f"{x:.6f}", f"{y:.6f}", f"{z + 0.005:.6f}"]
    return first + again


@odd(GAPS, "accepted")
def first_and_last_slices_missing(series: HeadSeries, _: Path) -> Slices:
    """Shorter at the lower end only: no gap, and the head is still whole enough."""
    return slices(series)[2:]


@odd(COPIES, "flagged:duplicates-dropped")
def three_times_one_slice(series: HeadSeries, _: Path) -> Slices:
    return slices(series) + fresh(slices(series)[10:11]) + fresh(slices(series)[10:11])


@odd(PATIENTS, "refused:mixed-patients")
def one_slice_under_another_id(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    images[11].PatientID = "SOMEBODY-ELSE"
    return images


@odd(PATIENTS, "refused:mixed-patients")
def same_id_of_two_issuers(series: HeadSeries, _: Path) -> Slices:
    return slices(series, lambda i, z: setattr(i, "IssuerOfPatientID", "A" if z < 9 else "B"))


@odd(PATIENTS, "refused:conflict")
def two_studies_under_one_series(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    for image in images[20:]:
        image.StudyInstanceUID = "1.2.3.4.5"
    return images
