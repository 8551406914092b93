"""Odd series, each with the row of the reliability table that it stands for and its verdict.

An entry makes datasets from a plain head series and says what ingest must come to: one text for
every series or volume that it finds, `accepted`, `flagged:CODE,...`, `refused:CODE` or
`skipped:CODE`, in any order; `A|B` where either will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from headct.phantom.decoys import HeadSeries
from headct.phantom.files import phantom_uid

Slices = list[Dataset]
Change = Callable[[Dataset, int], None]
PREFIX = "1.2.826.0.1.3680043.8.498."


@dataclass(frozen=True)
class Odd:
    """One odd input: where it belongs, how it is written into a folder, what must become of it."""

    row: str
    name: str
    make: Callable[[HeadSeries, Path], Slices | None]
    verdicts: tuple[str, ...]

    def write(self, series: HeadSeries, folder: Path) -> None:
        """Write the input into a folder; the same bytes each time for a series."""
        _UIDS.set(phantom_uid(series.header.series_uid, self.name, n) for n in count())
        made = self.make(series, folder)
        if made is not None:
            put(folder, made)


ODD: list[Odd] = []
_UIDS: ContextVar[Iterator[str]] = ContextVar(
    "_UIDS", default=(phantom_uid("odd", n) for n in count())
)


def new_uid() -> str:
    """A UID that nothing else in the input has."""
    return next(_UIDS.get())


def odd(row: str, *verdicts: str, name: str = "") -> Callable[..., Any]:
    """Register a function that returns the slices to write, or writes them itself."""

    def register(make: Callable[[HeadSeries, Path], Slices | None]) -> Callable[..., Any]:
        ODD.append(Odd(row, name or make.__name__.replace("_", "-"), make, verdicts))
        return make

    return register


def slices(series: HeadSeries, change: Change | None = None) -> Slices:
    """The series as datasets, from the feet up, after `change(image, z)`."""
    from io import BytesIO

    images = [pydicom.dcmread(BytesIO(file)) for file in series.files()]
    for z, image in enumerate(images):
        if change is not None:
            change(image, z)
    return images


def put(folder: Path, images: Iterable[Dataset], name: str = "IM{:04d}.dcm") -> None:
    """Write datasets in a shuffled order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    images = list(images)
    order = np.random.default_rng(len(images)).permutation(len(images))
    for number, image in zip(order, images, strict=True):
        image.file_meta.MediaStorageSOPInstanceUID = image.get("SOPInstanceUID", new_uid())
        image.file_meta.MediaStorageSOPClassUID = image.get("SOPClassUID", "1.2.3")
        image.save_as(folder / name.format(int(number)), enforce_file_format=False)


def fresh(images: Slices, **same: Any) -> Slices:
    """With image UIDs of their own, and some elements set in all."""
    for image in images:
        image.SOPInstanceUID = new_uid()
        for keyword, value in same.items():
            setattr(image, keyword, value)
    return images


def pixels(image: Dataset) -> np.ndarray:
    """Stored values, as a copy."""
    kind = "<i2" if image.PixelRepresentation else "<u2"
    return np.frombuffer(image.PixelData, kind).reshape(image.Rows, image.Columns).copy()


def set_pixels(image: Dataset, stored: np.ndarray) -> None:
    """Store these values, with rows and columns to match."""
    image.Rows, image.Columns = stored.shape
    image.PixelData = np.ascontiguousarray(stored).tobytes()
    image["PixelData"].VR = "OW"


def hu_of(image: Dataset) -> np.ndarray:
    """HU [y x] of a slice; padding is air."""
    hu = pixels(image) * float(image.RescaleSlope) + float(image.RescaleIntercept)
    return np.maximum(hu, -1024)


def store_as(image: Dataset, hu: np.ndarray, **layout: Any) -> None:
    """Write HU with other bits, sign, slope or intercept."""
    for keyword, value in layout.items():
        setattr(image, keyword, value)
    if "PixelPaddingValue" in image and "PixelPaddingValue" not in layout:
        del image.PixelPaddingValue
    stored = np.rint((hu - float(image.RescaleIntercept)) / float(image.RescaleSlope))
    kind = np.dtype("<i2" if image.PixelRepresentation else "<u2")
    low = np.iinfo(kind).min if image.PixelRepresentation else 0
    set_pixels(image, stored.clip(low, np.iinfo(kind).max).astype(kind))


def setting(**elements: Any) -> Change:
    """A change that sets elements; None removes one."""

    def change(image: Dataset, _: int) -> None:
        for keyword, value in elements.items():
            if value is None:
                if keyword in image:
                    delattr(image, keyword)
            else:
                setattr(image, keyword, value)

    return change


def variants(row: str, verdict: str, **cases: Change) -> None:
    """Several one-line entries of a row with one verdict."""
    for name, change in cases.items():
        odd(row, verdict, name=name.replace("_", "-"))(
            lambda series, _, change=change: slices(series, change)
        )


def moved(image: Dataset, mm: Sequence[float]) -> None:
    """Put a slice elsewhere, by mm along x, y and z of DICOM."""
    at = np.array(image.ImagePositionPatient, float) + mm
    image.ImagePositionPatient = [f"{v:.6f}" for v in at]


def placed(images: Slices, turn: np.ndarray, shear_mm: Sequence[float] = (0, 0, 0)) -> Slices:
    """The stack as it would be stored with other axes: columns of `turn` are row, column, normal.

    Only geometry changes: the pixels then show a head that lies otherwise.
    """
    at = np.array([image.ImagePositionPatient for image in images], float)
    step = float(at[1, 2] - at[0, 2])
    for z, image in enumerate(images):
        origin = turn @ at[0] + z * (step * turn[:, 2] + np.asarray(shear_mm))
        image.ImagePositionPatient = [f"{v:.6f}" for v in origin]
        image.ImageOrientationPatient = [f"{v:.8f}" for v in (*turn[:, 0], *turn[:, 1])]
    return images


def resampled(
    series: HeadSeries, turn: np.ndarray, shape: tuple[int, int, int], mm: Sequence[float]
) -> Slices:
    """The same head in the same place, cut along other planes.

    Args:
        series: with the head.
        turn: columns are row direction, column direction and step direction in LPS (a step
            that is not the normal: a tilted gantry).
        shape: slices, rows, columns.
        mm: from slice to slice, row to row, column to column.
    """
    from scipy import ndimage

    row, column, step = turn.T
    centre = _centre_lps(series)
    n = np.array(shape)
    first = centre - sum(
        axis * d * (k - 1) / 2 for axis, d, k in zip((step, column, row), mm, n, strict=True)
    )
    grid = np.eye(4)
    grid[:3, 0], grid[:3, 1], grid[:3, 2] = step * mm[0], column * mm[1], row * mm[2]
    grid[:3, 3] = first
    to_sar = np.zeros((4, 4))
    to_sar[0, 2], to_sar[1, 1], to_sar[2, 0], to_sar[3, 3] = 1, -1, -1, 1
    matrix = np.linalg.inv(series.affine_zyx) @ to_sar @ grid
    hu = ndimage.affine_transform(
        series.hu.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=shape,
        order=1, mode="constant", cval=-1024,
    )  # fmt: skip
    pattern = slices(series)
    images = []
    for z in range(shape[0]):
        image = deepcopy(pattern[0])
        image.SOPInstanceUID = new_uid()
        store_as(image, hu[z])
        image.PixelSpacing = [f"{mm[1]:g}", f"{mm[2]:g}"]
        image.ImagePositionPatient = [f"{v:.6f}" for v in first + z * mm[0] * step]
        image.ImageOrientationPatient = [f"{v:.8f}" for v in (*row, *column)]
        image.InstanceNumber = z + 1
        images.append(image)
    return images


def _centre_lps(series: HeadSeries) -> np.ndarray:
    middle = [(n - 1) / 2 for n in series.hu.shape]
    s, a, r, _ = series.affine_zyx @ [*middle, 1]
    return np.array([-r, -a, s])


def compressed(images: Slices, syntax: str, **options: Any) -> Slices:
    """The slices in a compressed transfer syntax."""
    for image in images:
        image.compress(UID(syntax), generate_instance_uid=False, **options)
    return images


def saved_as(folder: Path, images: Slices, syntax: str) -> None:
    """Uncompressed, but in another encoding."""
    folder.mkdir(parents=True, exist_ok=True)
    for z, image in enumerate(images):
        if syntax == "1.2.840.10008.1.2.2":
            image.PixelData = np.frombuffer(image.PixelData, "<i2").astype(">i2").tobytes()
        image.file_meta.TransferSyntaxUID = UID(syntax)
        big = syntax == "1.2.840.10008.1.2.2"
        pydicom.dcmwrite(
            folder / f"{z}", image, implicit_vr=syntax == "1.2.840.10008.1.2",
            little_endian=not big, force_encoding=True, overwrite=True,
        )  # fmt: skip


def series_with(series: HeadSeries, name: str, **header: Any) -> HeadSeries:
    """Another series of the same study, as a scanner makes it."""
    return series.beside(name, **header)


def plain(series: HeadSeries, **header: Any) -> HeadSeries:
    """The series with other values in its header."""
    return replace(series, header=replace(series.header, **header))


EXPLICIT = ExplicitVRLittleEndian
