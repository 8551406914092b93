"""Stored values of a NIfTI file -> checked HU, slab by slab while each is in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from headct.dicom.reasons import Reason
from headct.errors import Refusal
from headct.volume.volume import AIR_HU

MAX_EXTENSION_BYTES = 64 << 20
MAX_STORED_HU = 32767
AIR_BELOW_HU = -500
"""A CT in HU holds air; values that never go below this are not HU."""
SLAB_VOXELS = 1 << 17
"""Unpacked, scaled, looked at and put in their place at once: a slab fits into the cache."""

Scale = Callable[[NDArray[Any]], NDArray[Any]]


def read_hu(
    stream: BinaryIO, header: Any, shape_xyz: tuple[int, int, int], n_read: int
) -> NDArray[np.int16]:
    """The voxels of a file in HU; below air becomes air.

    The rest of the file is read too, for its checksum.

    Args:
        stream: plain bytes, behind the header.
        header: of nibabel, checked.
        shape_xyz: sizes in the header's order.
        n_read: bytes of the stream that are read already.

    Returns:
        int16 [x y z], first axis fastest in memory.

    Raises:
        Refusal: voxels are missing, not finite, all the same or not HU.
        EOFError, zlib.error, gzip.BadGzipFile: from the stream.
    """
    gap = float(header["vox_offset"]) - n_read
    if not 0 <= gap <= MAX_EXTENSION_BYTES:
        raise Refusal("the voxels start at an absurd place", code=Reason.UNREADABLE)
    stream.read(int(gap))
    scale = _scale(header)
    hu = np.empty(math.prod(shape_xyz), np.int16)
    floor = np.full(min(hu.size, SLAB_VOXELS), AIR_HU, np.int16)
    stored = np.empty(floor.size, header.get_data_dtype())
    as_stored = scale is _same and stored.dtype == hu.dtype
    seen = _Range()
    for first in range(0, hu.size, SLAB_VOXELS):
        out = hu[first : first + SLAB_VOXELS]
        slab = out if as_stored else stored[: out.size]
        n_missing = _fill(stream, slab)
        if n_missing:
            n_missing += (hu.size - first - out.size) * stored.itemsize
            raise Refusal(f"{n_missing} bytes of voxels are missing", code=Reason.TRUNCATED)
        _put(scale(slab), floor[: out.size], out, seen)
    _require_end(stream, n_plane_bytes=shape_xyz[0] * shape_xyz[1] * stored.itemsize)
    seen.require_hu()
    return hu.reshape(shape_xyz, order="F")


def _fill(stream: BinaryIO, slab: NDArray[Any]) -> int:
    """Fill a slab from the stream; how many bytes are missing at its end."""
    left = slab.view(np.uint8).data
    while left and (n := stream.readinto(left)):  # type: ignore[attr-defined]
        left = left[n:]
    return len(left)


def _require_end(stream: BinaryIO, n_plane_bytes: int) -> None:
    """Read what lies behind the voxels: padding is fine, a slice more is a header that lies."""
    n_behind = 0
    while n_behind < MAX_EXTENSION_BYTES and (block := stream.read(1 << 20)):
        n_behind += len(block)
    if n_behind >= min(n_plane_bytes, MAX_EXTENSION_BYTES):
        message = f"{n_behind} bytes lie behind the voxels that the header names"
        raise Refusal(message, code=Reason.UNREADABLE)


def _same(stored: NDArray[Any]) -> NDArray[Any]:
    return stored


def _scale(header: Any) -> Scale:
    """Stored values -> values after slope and intercept, as int16 or floating point.

    A slope that is 0 or NaN stands for none, as writers of NIfTI use it; infinity is damage.
    """
    if np.isinf([header["scl_slope"], header["scl_inter"]]).any():
        raise Refusal("slope or intercept is infinite", code=Reason.BAD_RESCALE)
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError:
        raise Refusal("slope or intercept is no number", code=Reason.BAD_RESCALE) from None
    kind = header.get_data_dtype()
    if slope is not None and (slope, inter) != (1.0, 0.0):
        return lambda stored: stored.astype(np.float32) * np.float32(slope) + np.float32(inter)
    if kind.newbyteorder("=") == np.int16:
        return _same
    plain = kind.newbyteorder("=") if kind.kind == "f" else np.float64
    return lambda stored: stored.astype(plain)


@dataclass
class _Range:
    """Lowest and highest value so far; NaN stays."""

    low: float = math.inf
    high: float = -math.inf

    def see(self, values: NDArray[Any]) -> None:
        self.low = float(np.minimum(self.low, values.min()))
        self.high = float(np.maximum(self.high, values.max()))

    @property
    def shows_air_and_more(self) -> bool:
        return self.low <= AIR_BELOW_HU and self.high > self.low

    def require_hu(self) -> None:
        if not math.isfinite(self.low) or not math.isfinite(self.high):
            raise Refusal("the values hold NaN or infinity", code=Reason.NOT_FINITE)
        if self.low == self.high:
            raise Refusal("all values are the same", code=Reason.CONSTANT_IMAGE)
        if self.low > AIR_BELOW_HU:
            message = f"values from {self.low:.4g} to {self.high:.4g}: no air, so not HU"
            raise Refusal(message, code=Reason.NOT_HU)


def _put(
    values: NDArray[Any], floor: NDArray[np.int16], out: NDArray[np.int16], seen: _Range
) -> None:
    """Values as HU in their place; integers are looked at until nothing can be wrong any more.

    An array of AIR_HU as floor is six times faster than the number.
    """
    is_integer = values.dtype.kind == "i"
    if not is_integer or not seen.shows_air_and_more:
        seen.see(values)
    if is_integer:
        np.maximum(values, floor, out=out)
        return
    np.rint(values, out=values)
    np.clip(values, AIR_HU, MAX_STORED_HU, out=values)
    with np.errstate(invalid="ignore"):  # NaN is refused when all is read
        np.copyto(out, values, casting="unsafe")
