"""Odd NIfTI files: what they hold, where they say it is, and damage."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.odd.entry import odd

VALUES = "NIfTI: NaN, 4-D, RGB, 8-bit, 0..1 scaled, truncated gz, header bomb, singular affine"
FRAMES = "NIfTI: slope 0, big endian, any axis order; sform and qform disagree or both 0"

Edit = Callable[[bytearray], Any]


def image_of(
    series: HeadSeries, change: Callable[[np.ndarray], np.ndarray] | None = None
) -> nib.Nifti1Image:
    """The head as a NIfTI image, x to the right, after `change(hu)` of [x y z]."""
    hu = np.maximum(series.hu, -1024).astype(np.int16).T
    affine = np.eye(4)
    affine[:3, :3] = series.affine_zyx[2::-1, 2::-1]
    affine[:3, 3] = series.affine_zyx[2::-1, 3]
    image = nib.Nifti1Image(hu if change is None else change(hu), affine)
    image.header.set_xyzt_units("mm")
    return image


def _values(name: str, verdict: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    def write(series: HeadSeries, folder: Path) -> None:
        folder.mkdir(parents=True)
        nib.save(image_of(series, change), folder / "a.nii.gz")

    odd(VALUES, verdict, name=name)(write)


def _raw(row: str, name: str, verdict: str, edit: Edit) -> None:
    """The file with bytes of its header changed (offsets of the NIfTI-1 standard)."""

    def write(series: HeadSeries, folder: Path) -> None:
        folder.mkdir(parents=True)
        data = bytearray(image_of(series).to_bytes())
        data = edit(data) or data
        (folder / "a.nii").write_bytes(data)

    odd(row, verdict, name=name)(write)


def _put(offset: int, kind: str, *values: float) -> Edit:
    data = np.array(values, kind).tobytes()
    return lambda header: header.__setitem__(slice(offset, offset + len(data)), data)


def _with_nan(hu: np.ndarray) -> np.ndarray:
    values = hu.astype(np.float32)
    values[5, 5, 5] = np.nan
    return values


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_values("one-nan", "refused:not-finite", _with_nan)
_values("infinite", "refused:not-finite", lambda hu: np.where(hu > 1000, np.inf, hu))
_values("four-axes", "refused:not-3d", lambda hu: np.stack([hu, hu], 3))
_values("one-slice", "refused:not-3d", lambda hu: hu[:, :, 10])
_values("colour", "refused:colour", lambda hu: np.zeros(hu.shape, RGB))
_values("complex", "refused:not-hu", lambda hu: hu.astype(np.complex64))
_values("eight-bit", "refused:not-hu", lambda hu: (hu // 16 + 64).clip(0, 255).astype(np.uint8))
_values("label-map", "refused:not-hu", lambda hu: (hu > 200).astype(np.int16))
_values("zero-to-one", "refused:not-hu", lambda hu: ((hu + 1024) / 4095).astype(np.float32))
_values("brain-window", "refused:not-hu", lambda hu: hu.clip(0, 80))
_values("z-score", "refused:not-hu", lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32))
_values("constant", "refused:constant-image", lambda hu: hu * 0)
_values("skull-stripped", "refused:implausible-hu", lambda hu: np.where(abs(hu) < 90, hu, -700))
_values("float64", "accepted", lambda hu: hu.astype(np.float64) + 0.25)
_values("fourth-axis-of-one", "accepted", lambda hu: hu[..., None])
_values("padded-with-minus-3024", "accepted", lambda hu: np.where(hu < -990, -3024, hu))

_raw(VALUES, "truncated", "refused:truncated", lambda d: d[:-1000])
_raw(VALUES, "truncated-header", "refused:truncated", lambda d: d[:200])
_raw(VALUES, "text", "refused:unreadable", lambda d: bytearray(b"<html>not found</html>" * 30))
_raw(VALUES, "sizes-of-32767", "refused:too-large", _put(42, "<i2", 32767, 32767, 32767))
_raw(VALUES, "more-voxels-than-bytes", "refused:truncated", _put(46, "<i2", 999))
_raw(VALUES, "negative-size", "refused:not-3d", _put(42, "<i2", -5))
_raw(VALUES, "voxels-start-far-out", "refused:unreadable", _put(108, "<f4", 3e9))
_raw(VALUES, "voxels-start-at-nan", "refused:unreadable", _put(108, "<f4", np.nan))
_raw(VALUES, "unknown-data-type", "refused:unreadable", _put(70, "<i2", 12345))
_raw(VALUES, "nan-slope", "accepted", _put(112, "<f4", np.nan, 0))
_raw(VALUES, "infinite-slope", "refused:bad-rescale", _put(112, "<f4", np.inf, 0))
_raw(VALUES, "zero-axis", "refused:singular-affine", _put(280, "<f4", *[0.0] * 12))
_raw(VALUES, "nan-affine", "refused:bad-geometry", _put(280, "<f4", np.nan))
_raw(VALUES, "voxels-of-a-metre", "refused:bad-geometry", _put(123, "u1", 1))
_raw(FRAMES, "slope-zero", "accepted", _put(112, "<f4", 0, 5))
_raw(FRAMES, "neither-frame", "flagged:no-frame", _put(252, "<i2", 0, 0))
_raw(FRAMES, "qform-only", "accepted", lambda d: _qform_only(d))


def _qform_only(data: bytearray) -> bytearray:
    image = nib.Nifti1Image.from_bytes(bytes(data))
    image.set_qform(image.affine, code=1)
    image.set_sform(None, code=0)
    return bytearray(image.to_bytes())


@odd(VALUES, "refused:empty-file")
def no_bytes(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.nii").touch()


@odd(VALUES, "refused:truncated")
def truncated_gzip(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    data = gzip.compress(image_of(series).to_bytes())
    (folder / "a.nii.gz").write_bytes(data[: len(data) // 2])


@odd(VALUES, "refused:unreadable")
def damaged_gzip(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    data = bytearray(gzip.compress(image_of(series).to_bytes()))
    data[-8:-4] = bytes(4)
    (folder / "a.nii.gz").write_bytes(data)


@odd(VALUES, "refused:too-large")
def gzip_bomb(series: HeadSeries, folder: Path) -> None:
    """A few hundred kilobytes that claim and unpack to far more than a scan."""
    folder.mkdir(parents=True)
    header = bytearray(image_of(series).to_bytes()[:352])
    _put(42, "<i2", 4096, 4096, 4096)(header)
    with gzip.open(folder / "a.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header)
        for _ in range(64):
            stream.write(bytes(1 << 20))


@odd(VALUES, "flagged:frame-conflict")
def sform_and_qform_disagree(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    image = image_of(series)
    shifted = image.affine.copy()
    shifted[:3, 3] += 7
    image.set_qform(shifted, code=1)
    nib.save(image, folder / "a.nii.gz")


@odd(FRAMES, "accepted")
def big_endian(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    image = image_of(series)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header), folder / "a.nii")


@odd(FRAMES, "accepted")
def axes_in_another_order(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    image = image_of(series)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, folder / "a.nii.gz")


@odd(FRAMES, "accepted", name="version-2")
def version_two(series: HeadSeries, folder: Path) -> None:
    folder.mkdir(parents=True)
    image = image_of(series)
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine), folder / "a.nii")
