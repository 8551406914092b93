"""The identity of the preprocessing: its parameters, its version, its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import computed_field, model_validator

from headct.config import Config, Count, Positive
from headct.errors import MismatchError
from headct.volume.window import WINDOWS, Window

CANONICAL_VERSION = 1
"""Raised with every change that can alter a canonical volume."""


class Stretch(Config):
    """The head as a cube, whatever its size: what FM-CT is trained on. See `volume/stretched.py`.

    What the paper does not say is as MONAI's transforms do it without arguments; who has its
    weights can set what their own pipeline did.
    """

    foreground_above_hu: float = 0.0
    """The cube holds the box of all voxels above it, table and neck included."""
    resize: Literal["area", "linear"] = "area"
    """How 1 mm voxels become those of the cube."""
    windows: tuple[Window, ...] = ()
    """Put before the stretch; without any the cube holds HU, and an encoder's windows come after.
    The order matters: edges of bone and air differ."""
    scaled_to: tuple[float, float] = (0.0, 1.0)
    """Values of a channel at the two ends of its window."""


class Preprocessing(Config):
    """What makes a canonical volume; stores, checkpoints, bundles, predictions carry its hash."""

    version: int = CANONICAL_VERSION
    shape_zyx: tuple[Count, Count, Count]
    """Voxels per axis of the canonical grid."""
    spacing_mm_zyx: tuple[Positive, Positive, Positive]
    """mm between voxels of the canonical grid."""
    vertex_margin_mm: float = 8.0
    """mm of air above the vertex: the grid is top-aligned there."""
    pose: Literal["scanner", "aligned"] = "scanner"
    """Axes of the grid: the scanner's, or those of the head where it can be found how it lies
    (mid-sagittal plane, orbito-meatal line level)."""
    stretched: Stretch | None = None
    """Stretches the head to the cube; spacing, margin and pose then mean nothing for the voxels,
    and the spacing is nominal."""

    @model_validator(mode="after")
    def _cannot_be_both(self) -> Preprocessing:
        if self.stretched is not None and self.pose != "scanner":
            raise ValueError("a stretched head keeps the scanner's pose")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hash(self) -> str:
        """16 hex digits over all parameters."""
        values = self.model_dump(mode="json", exclude={"hash"}, exclude_none=True)
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def fov_mm_zyx(self) -> tuple[float, float, float]:
        """Field of view, mm."""
        z, y, x = (n * mm for n, mm in zip(self.shape_zyx, self.spacing_mm_zyx, strict=True))
        return z, y, x

    def require_same(self, other: Preprocessing, this: str, that: str) -> None:
        """Raise MismatchError where two things were not made with the same preprocessing."""
        if self.hash != other.hash:
            raise MismatchError(
                f"{this} has preprocessing {self.hash}, {that} has {other.hash}",
                remedy="ingest the scans again with the grid of the other, or use the matching one",
            )


_CUBE = Preprocessing(shape_zyx=(96, 96, 96), spacing_mm_zyx=(2.0, 2.0, 2.0))

PRESETS = {
    "demo": Preprocessing(shape_zyx=(48, 64, 48), spacing_mm_zyx=(3.3, 3.3, 3.3)),
    "small": Preprocessing(shape_zyx=(96, 120, 96), spacing_mm_zyx=(2.0, 2.0, 2.0)),
    "base": Preprocessing(shape_zyx=(48, 240, 192), spacing_mm_zyx=(4.0, 1.0, 1.0)),
    "fmct": _CUBE.model_copy(update={"stretched": Stretch(windows=WINDOWS)}),
    "fmct-hu": _CUBE.model_copy(update={"stretched": Stretch()}),
}
"""Grids by name; the patch of each is given in the recipe. Source: RECIPE presets.

`fmct` is the faithful input of FM-CT's weights: windows, then the stretch; `fmct-hu` is the same
cube in HU, for a store on which its recipe is trained anew."""
