"""The identity of the preprocessing: its parameters, its version, its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import computed_field

from headct.config import Config
from headct.errors import MismatchError

CANONICAL_VERSION = 1
"""Raised with every change that can alter a canonical volume."""


class Preprocessing(Config):
    """What makes a canonical volume; stores, checkpoints, bundles, predictions carry its hash."""

    version: int = CANONICAL_VERSION
    shape_zyx: tuple[int, int, int]
    """Voxels per axis of the canonical grid."""
    spacing_mm_zyx: tuple[float, float, float]
    """mm between voxels of the canonical grid."""
    vertex_margin_mm: float = 8.0
    """mm of air above the vertex: the grid is top-aligned there."""
    pose: Literal["scanner", "aligned"] = "scanner"
    """Axes of the grid: the scanner's, or those of the head where it can be found how it lies
    (mid-sagittal plane, orbito-meatal line level)."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hash(self) -> str:
        """16 hex digits over all parameters."""
        values = self.model_dump(mode="json", exclude={"hash"})
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


PRESETS = {
    "demo": Preprocessing(shape_zyx=(48, 64, 48), spacing_mm_zyx=(3.3, 3.3, 3.3)),
    "small": Preprocessing(shape_zyx=(96, 120, 96), spacing_mm_zyx=(2.0, 2.0, 2.0)),
    "base": Preprocessing(shape_zyx=(48, 240, 192), spacing_mm_zyx=(4.0, 1.0, 1.0)),
}
"""Grids by name; the patch of each is given in the recipe. Source: RECIPE presets."""
