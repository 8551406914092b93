"""NIfTI files -> volumes with their true affine, and volumes -> NIfTI files."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from headct.atomic import replacing
from headct.dicom.reasons import Reason
from headct.errors import Refusal
from headct.volume.nifti_voxels import read_hu
from headct.volume.volume import Volume, affine_from_nifti

GZIP_MAGIC = b"\x1f\x8b"
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
MAX_SIDE = 4096
MAX_VOXELS = 1 << 29
MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 25.0
FRAMES_AGREE_MM = 1.0
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""By the code in the header: metre, millimetre, micrometre; anything else is taken as mm."""

Array = NDArray[np.float64]


def read_nifti(path: Path) -> Volume:
    """A NIfTI file in HU on its own grid, whatever its axis order.

    Where sform and qform both say something else, sform holds and the volume is flagged; where
    neither is set, the axes are taken as right, anterior, superior (the standard's method 1), and
    the volume is flagged, since left and right are then a guess.

    Raises:
        Refusal: damaged, truncated, too large, not one 3D volume, not HU, or no usable affine.

    Source:
        NIfTI-1 standard, "3D image (volume) orientation and location in space".
    """
    try:
        with _opened(path) as stream:
            header, n_read = _read_header(stream)
            shape = _checked_shape(header)
            affine, flags = _affine(header)
            values = read_hu(stream, header, shape, n_read)
    except EOFError:
        raise Refusal("the compressed file ends early", code=Reason.TRUNCATED) from None
    except (zlib.error, gzip.BadGzipFile):
        raise Refusal("the compressed file is damaged", code=Reason.UNREADABLE) from None
    except OSError:
        raise Refusal("the file cannot be opened or read", code=Reason.NO_PERMISSION) from None
    step = {"step": "read", "format": "nifti", "shape_zyx": list(values.shape[::-1])}
    return Volume(values.T, affine_from_nifti(affine), (step,), tuple(flags))


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a volume as `.nii` or `.nii.gz`, its affine as sform; whole or not at all."""
    image = nib.Nifti1Image(volume.hu.T, None)
    image.header.set_xyzt_units("mm")
    # a qform cannot hold the shear of a tilted gantry, so that only the sform is set
    image.set_sform(volume.affine_nifti, code=1)
    image.set_qform(None, code=0)
    image.header["pixdim"][1:4] = volume.spacing_mm_zyx[::-1]
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    with replacing(path) as aside:
        aside.write_bytes(data)


def content_hash(path: Path) -> str:
    """What names a NIfTI file: the SHA-256 of its bytes, 64 hex digits.

    A compressed file that lies beside its plain self (`a.nii.gz`, `a.nii`) has the plain one's, so
    that both are one scan.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as handle:
        own = hashlib.file_digest(handle, "sha256").hexdigest()
    plain = path.with_suffix("")
    if not path.name.lower().endswith(".nii.gz") or not plain.is_file():
        return own
    try:
        with _opened(path) as inside, plain.open("rb") as beside:
            unpacked, other = (hashlib.file_digest(f, "sha256") for f in (inside, beside))
    except (EOFError, OSError, zlib.error):
        return own
    return other.hexdigest() if unpacked.digest() == other.digest() else own


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The plain bytes of a file, compressed or not, whatever its name says."""
    with path.open("rb") as handle:
        magic = handle.read(2)
        handle.seek(0)
        if not magic:
            raise Refusal("the file has no bytes", code=Reason.EMPTY_FILE)
        if magic == GZIP_MAGIC:
            with igzip.IGzipFile(fileobj=handle) as stream:
                # its buffer unpacks into given memory, where the file itself would copy
                yield cast(BufferedReader, getattr(stream, "_buffer", stream))
        else:
            yield handle


def _read_header(stream: BinaryIO) -> tuple[Any, int]:
    """The header, of version 1 or 2, and how many bytes it took."""
    head = stream.read(4)
    claimed = {int.from_bytes(head, "little"), int.from_bytes(head, "big")} & HEADERS.keys()
    if not claimed:
        raise Refusal("named like NIfTI, but without its header", code=Reason.UNREADABLE)
    n_bytes = claimed.pop()
    kind = HEADERS[n_bytes]
    head += stream.read(n_bytes - 4)
    if len(head) < n_bytes:
        raise Refusal("the file ends inside its header", code=Reason.TRUNCATED)
    try:
        header = kind(head, check=False)
        header.get_data_dtype()
    except Exception:
        # nibabel raises anything, and quotes what it read
        raise Refusal("the NIfTI header cannot be read", code=Reason.UNREADABLE) from None
    if not bytes(header["magic"]).startswith(b"n+"):
        raise Refusal("a header without voxels behind it", code=Reason.UNREADABLE)
    return header, n_bytes


def _checked_shape(header: Any) -> tuple[int, int, int]:
    """The three sizes, from the header alone: nothing is allocated for an absurd one."""
    sizes = [int(n) for n in header.get_data_shape()]
    if len(sizes) < 3 or any(n != 1 for n in sizes[3:]):
        raise Refusal(f"{len(sizes)} axes, not three", code=Reason.NOT_3D)
    x, y, z = sizes[:3]
    if min(x, y, z) < 1:
        raise Refusal("an axis without voxels", code=Reason.NOT_3D)
    if max(x, y, z) > MAX_SIDE or math.prod((x, y, z)) > MAX_VOXELS:
        raise Refusal(f"{x} x {y} x {z} voxels", code=Reason.TOO_LARGE)
    kind = header.get_data_dtype()
    if kind.fields is not None:
        raise Refusal("colour voxels", code=Reason.COLOUR)
    if kind.kind not in "iuf":
        raise Refusal("voxels that are not real numbers", code=Reason.NOT_HU)
    if kind.itemsize == 1:
        raise Refusal("8-bit voxels cannot hold CT numbers", code=Reason.NOT_HU)
    if min(x, y, z) < 2:
        raise Refusal("one slice is no volume", code=Reason.SINGLE_SLICE)
    return x, y, z


def _affine(header: Any) -> tuple[Array, list[str]]:
    """(x, y, z) index -> RAS mm, and flags."""
    flags: list[str] = []
    sform = header.get_sform() if header["sform_code"] > 0 else None
    qform = _qform(header) if header["qform_code"] > 0 else None
    if sform is not None and qform is not None and not _agree(sform, qform, header):
        flags.append(Reason.FRAME_CONFLICT)
    affine = sform if sform is not None else qform
    if affine is None and header["qform_code"] > 0:
        raise Refusal("the qform is no rotation", code=Reason.BAD_GEOMETRY)
    if affine is None:
        flags.append(Reason.NO_FRAME)
        affine = np.diag([*header.get_zooms()[:3], 1.0]).astype(np.float64)
    affine = np.asarray(affine, np.float64).copy()
    affine[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    _require_usable(affine)
    return affine, flags


def _qform(header: Any) -> Array | None:
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (ValueError, HeaderDataError):
        return None


def _agree(a: Array, b: Array, header: Any) -> bool:
    """Every corner of the volume is at the same place."""
    n = np.array(header.get_data_shape()[:3]) - 1
    corners = np.array([[*(n * np.array(c)), 1] for c in np.ndindex(2, 2, 2)])
    return bool(np.abs(corners @ (a - b).T).max() <= FRAMES_AGREE_MM)


def _require_usable(affine: Array) -> None:
    if not np.isfinite(affine).all():
        raise Refusal("the affine is not finite", code=Reason.BAD_GEOMETRY)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise Refusal("the affine cannot be inverted", code=Reason.SINGULAR_AFFINE)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise Refusal("voxels of an absurd size", code=Reason.BAD_GEOMETRY)
