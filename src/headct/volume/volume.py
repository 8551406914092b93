"""Volume: HU array, geometry and provenance.

Arrays are [z y x] with z to superior, y to anterior and x to the patient's right in a canonical
volume; in any other volume the affine says where the axes point. World coordinates are RAS
millimetres in the same array order, (S, A, R), so that one order holds everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.errors import GeometryError

Zyx = tuple[float, float, float]

AIR_HU = -1024
MIN_HU = -1024
MAX_HU = 3071


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan in HU with its true geometry.

    Attributes:
        hu: [z y x], int16 or float32.
        affine_zyx: 4x4 float64, voxel index (z, y, x, 1) -> (superior, anterior, right, 1) in mm.
            A sheared affine (gantry tilt) is allowed.
        provenance: what was done to get here, oldest first; plain JSON values, no identifiers.
        flags: reason codes of recorded warnings.
    """

    hu: NDArray[Any]
    affine_zyx: NDArray[np.float64]
    provenance: tuple[dict[str, Any], ...] = field(default=())
    flags: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or 0 in self.hu.shape:
            raise GeometryError(f"a volume has three axes, not the shape {self.hu.shape}")
        affine = np.asarray(self.affine_zyx, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError("the affine is not a finite 4x4 matrix")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError("the affine is singular")
        object.__setattr__(self, "affine_zyx", affine)

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Voxels per axis."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def spacing_mm_zyx(self) -> Zyx:
        """Distance between neighbouring voxels along each array axis, mm."""
        z, y, x = np.linalg.norm(self.affine_zyx[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def affine_nifti(self) -> NDArray[np.float64]:
        """4x4, voxel index (x, y, z, 1) -> RAS (x, y, z, 1) in mm, as NIfTI and nibabel have it."""
        order = [2, 1, 0, 3]
        return self.affine_zyx[np.ix_(order, order)]

    def with_step(self, step: dict[str, Any], **changes: Any) -> Volume:
        """A changed copy with one more provenance entry."""
        return replace(self, provenance=(*self.provenance, step), **changes)


def affine_from_nifti(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine in array order from one in NIfTI's (x, y, z) order; its own inverse."""
    order = [2, 1, 0, 3]
    return np.asarray(affine, dtype=np.float64)[np.ix_(order, order)]


def affine_from_dicom(affine_lps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine in array order and RAS from (column, row, slice) index -> DICOM patient LPS mm.

    The one place where LPS becomes RAS.

    Source:
        DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
    """
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return affine_from_nifti(lps_to_ras @ np.asarray(affine_lps, dtype=np.float64))
