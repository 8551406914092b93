"""What lies in a study beside its head CT, twins of it, and other bodies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headct.phantom import decoys
from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import (
    Slices,
    fresh,
    hu_of,
    new_uid,
    odd,
    plain,
    put,
    slices,
    store_as,
)
from headct.phantom.odd.kinds import BESIDE, OTHER, RULES


def _files(row: str, verdict: str, name: str, make: Any) -> None:
    def write(series: HeadSeries, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for n, data in enumerate(make(series)):
            (folder / f"x{n}").write_bytes(data)

    odd(row, verdict, name=name)(write)


_files(OTHER, "refused:not-head", "chest-as-head", decoys.chest_as_head)
_files(OTHER, "refused:other-body-part", "chest", decoys.chest)
_files(OTHER, "refused:other-body-part", "knee", decoys.knee)
_files(
    OTHER,
    "refused:not-head",
    "knee-as-head",
    lambda s: decoys._body(s.beside("Axial"), decoys._knee_hu),
)
_files(OTHER, "refused:not-head", "water-phantom", decoys.water_phantom)


@odd(OTHER, "refused:not-head")
def acrylic_ring_with_water(series: HeadSeries, _: Path) -> Slices:
    """A cylinder with a wall like bone: a skull to a naive reader, but round and alike in z."""

    def cylinder(image: Any, z: int) -> None:
        y, x = np.mgrid[:64, :64] - 31.5
        r = np.hypot(y, x) * 4.05
        hu = np.full((64, 64), -1000.0)
        hu[r < 100] = 0
        hu[(r > 92) & (r < 100)] = 900
        store_as(image, hu)

    return slices(series, cylinder)


@odd(BESIDE, "accepted", "refused:localizer", "refused:secondary-capture", "skipped:not-image")
def a_whole_study(series: HeadSeries, folder: Path) -> None:
    put(folder / "ct", slices(series))
    for name in ("localizer", "dose_report", "structured_report"):
        for n, data in enumerate(getattr(decoys, name)(series)):
            (folder / f"{name}{n}").write_bytes(data)


@odd(BESIDE, "accepted", "refused:localizer")
def localizer_under_the_same_uid(series: HeadSeries, _: Path) -> Slices:
    images = slices(series)
    (scout,) = fresh(slices(series)[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return [*images, scout]


@odd(BESIDE, "accepted", "skipped:not-dicom", "skipped:not-dicom", "skipped:not-dicom")
def notes_beside(series: HeadSeries, folder: Path) -> None:
    put(folder, slices(series))
    (folder / "readme.txt").write_text("hello")
    (folder / "thumb.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(200))
    (folder / "Thumbs.db").write_bytes(bytes(300))


@odd(RULES, "accepted", "skipped:not-chosen")
def thin_and_thick_twins(series: HeadSeries, folder: Path) -> None:
    """Two series of one acquisition, one of them every second slice, averaged."""
    put(folder / "thin", slices(series))
    thick = slices(plain(series, series_uid=new_uid(), series_description="Head 12mm"))[::2]
    put(folder / "thick", fresh(thick, SliceThickness="12"))


@odd(RULES, "accepted", "skipped:not-chosen")
def soft_and_bone_twins(series: HeadSeries, folder: Path) -> None:
    put(folder / "a", slices(plain(series, series_uid=new_uid(), kernel="BONE")))
    put(folder / "b", slices(series))


@odd(RULES, "accepted", "accepted")
def two_scans_of_one_study(series: HeadSeries, folder: Path) -> None:
    put(folder / "a", slices(series))
    later = plain(series, series_uid=new_uid(), time="201010")
    put(folder / "b", slices(later, lambda i, z: store_as(i, hu_of(i) + 1)))
