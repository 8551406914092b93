"""Do maps point at the lesion? Pointing game and overlap with masks, beside pure chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt, map_coordinates

from headct.errors import UsageError
from headct.evaluate.bootstrap import PatientBootstrap, interval
from headct.volume.volume import Volume, affine_from_nifti

Mask = NDArray[np.bool_]
Row = dict[str, Any]
TOLERANCE_MM = 10.0
"""How far from the lesion the peak of a map may lie: about one patch."""
TOP_SHARE = 0.01
"""Share of the tissue that counts as the top of a map: its top percentile."""
TISSUE_ABOVE_HU = -500


@dataclass(frozen=True)
class Located:
    """How well a map lies on a lesion.

    Attributes:
        hit: the peak of the map is in the lesion or within the tolerance of it.
        dice: overlap of the top of the map with the lesion.
        chance_hit: share of the tissue in which a peak would be a hit.
        chance_dice: expected Dice of as many voxels of tissue drawn at random.
    """

    hit: bool
    dice: float
    chance_hit: float
    chance_dice: float


def locate(heat: NDArray[np.float32], mask: Mask, volume: Volume) -> Located:
    """Compare a map with the mask of a lesion.

    Args:
        heat: on the grid of the scan, [z y x].
        mask: of the lesion, on the same grid.
        volume: the scan.

    Source:
        Zhang et al. 2018, Top-down Neural Attention by Excitation Backprop, section 4.1.
    """
    tissue = np.asarray(volume.hu > TISSUE_ABOVE_HU) | mask
    near = distance_transform_edt(~mask, sampling=volume.spacing_mm_zyx) <= TOLERANCE_MM
    values = np.where(tissue, heat, -np.inf)
    peak = np.unravel_index(int(values.argmax()), values.shape)
    n_top = max(1, round(TOP_SHARE * tissue.sum()))
    lowest = np.partition(values[tissue], -n_top)[-n_top]
    top = (values >= lowest) & (values > 0)  # what a map leaves at 0 is never its top
    n_lesion, n_tissue = int(mask.sum()), int(tissue.sum())
    expected = n_top * n_lesion / n_tissue
    return Located(
        hit=bool(near[peak]),
        dice=float(2 * (top & mask).sum() / (top.sum() + n_lesion)),
        chance_hit=float((near & tissue).sum() / n_tissue),
        chance_dice=2 * expected / (n_top + n_lesion),
    )


def mask_of(folder: Path, names: Sequence[str], finding: str, volume: Volume) -> Mask | None:
    """The mask of a finding on the grid of a scan; None where there is none, or it is empty.

    Args:
        folder: of `NAME.npz` (arrays by finding, and `affine_zyx`; what `headct phantom` writes) or
            of `NAME_FINDING.nii.gz`.
        names: names of the scan that files may have.
        finding: which.
        volume: the canonical scan.

    Raises:
        UsageError: a file that is no mask.
    """
    for name in names:
        for path in (folder / f"{name}.npz", folder / f"{name}_{finding}.nii.gz"):
            if path.is_file():
                read = _read(path, finding)
                if read is None or not read[0].any():
                    return None
                return on_grid(*read, volume)
    return None


def _read(path: Path, finding: str) -> tuple[Mask, NDArray[np.float64]] | None:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as saved:
                if finding not in saved:
                    return None
                return saved[finding] > 0, np.asarray(saved["affine_zyx"], np.float64)
        image = nib.load(path)
        return np.asanyarray(image.dataobj).T > 0, affine_from_nifti(image.affine)
    except (OSError, ValueError, KeyError, nib.filebasedimages.ImageFileError) as error:
        raise UsageError("a mask cannot be read", remedy="give NIfTI or phantom masks") from error


def on_grid(mask: Mask, affine_zyx: NDArray[np.float64], volume: Volume) -> Mask:
    """A mask on another grid -> on the grid of a scan: voxels of which a quarter is in it.

    Thin lesions do not vanish: where less than half of the volume is left, all voxels count that
    the lesion touches.

    Args:
        mask: [z y x].
        affine_zyx: its voxels to world mm.
        volume: the scan.
    """
    to_mask = np.linalg.inv(affine_zyx) @ volume.affine_zyx
    index = np.indices(volume.shape_zyx).reshape(3, -1)
    where = to_mask[:3, :3] @ index + to_mask[:3, 3:]
    inside = map_coordinates(mask.astype(np.float32), where, order=1) > 0.5
    found = np.asarray(inside.reshape(volume.shape_zyx))
    points = np.argwhere(mask) @ affine_zyx[:3, :3].T + affine_zyx[:3, 3]
    back = np.linalg.inv(volume.affine_zyx)
    voxels = np.rint(points @ back[:3, :3].T + back[:3, 3]).astype(int)
    within = ((voxels >= 0) & (voxels < volume.shape_zyx)).all(axis=1)
    touched = np.zeros(volume.shape_zyx)
    np.add.at(touched, tuple(voxels[within].T), abs(np.linalg.det(to_mask[:3, :3])) ** -1)
    found |= touched >= 0.25
    is_fine = abs(np.linalg.det(to_mask[:3, :3])) > 1
    if is_fine and 2 * found.sum() < touched.sum():
        return np.asarray(touched > 0)
    return found


def outline(mask: Mask) -> NDArray[np.float32]:
    """The rim of a mask slice by slice, to draw over a scan."""
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True
    return (binary_dilation(mask, cross) & ~mask).astype(np.float32)


def summarise(rows: Sequence[Row], *, n_boot: int, seed: int, level: float = 0.95) -> list[Row]:
    """Share of hits and mean Dice per map and finding, with intervals by patient."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["map"], row["finding"]), []).append(row)
    summary = []
    for (name, finding), found in sorted(groups.items()):
        _, patient = np.unique([row["patient_id"] for row in found], return_inverse=True)
        line: Row = {"map": name, "finding": finding, "n": len(found)}
        plan = PatientBootstrap(patient, n_boot, seed)
        weights = np.concatenate([w for _, w in plan.chunks()], axis=1) if n_boot else None
        for what in ("hit", "dice"):
            values = np.array([float(row[what]) for row in found])
            line[what] = float(values.mean())
            if weights is not None:
                draws = (values @ weights) / weights.sum(axis=0)
                line[f"{what}_lo"], line[f"{what}_hi"] = interval(draws, level)
            line[f"chance_{what}"] = float(np.mean([row[f"chance_{what}"] for row in found]))
        summary.append(line)
    return summary
