"""Make src/headct/volume/reference_heads.npz, the heads that `pose = "aligned"` compares with.

    python benchmarks/reference_heads.py SCCT_HU.nii.gz

SCCT_HU.nii.gz is the average of many real head CTs by Rorden et al. (neurolabusc/Clinical,
scct.nii, BSD-2-Clause) in HU. The second head is the phantom's mean: drawn without deformation,
pose, findings and scanner. Both are made symmetric and carry the frame that scans are brought to:
R is 0 in the mid-sagittal plane, A in the middle of the cranium, S is VERTEX_MM at the vertex, and
the orbito-meatal line (middle of the globe to the ear) is level.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headct.phantom.plan import archive_sites
from headct.phantom.profile import load_preset
from headct.phantom.render import draw_scan, render_scan
from headct.volume.extent import CRANIUM_MM
from headct.volume.pose import HIGH_HU, LOW_HU, REFERENCES, VERTEX_MM
from headct.volume.read import read_series
from headct.volume.resample import block_mean, closest_ras

GLOBE_MM, MEATUS_MM = (-36.0, 57.0), (-54.0, -24.0)
"""(S, A) in the frame of SCCT, read off its parasagittal slices at 32 and 62 mm."""
CRANIUM_HU, SKIN_HU = 150, -300
N_PHANTOMS = 8
STEP_MM = 4.0


def adult(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The average of real heads on 4 mm, and its voxel -> frame affine."""
    volume = read_series(path)
    hu, affine = closest_ras(volume.hu, volume.affine_zyx)
    blocks, shrink = block_mean(hu, [round(STEP_MM / mm) for mm in volume.spacing_mm_zyx])
    rise, run = np.subtract(GLOBE_MM, MEATUS_MM)
    angle = np.arctan2(rise, run)
    level = np.eye(4)
    level[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    framed = level @ affine @ np.linalg.inv(shrink)
    skin, bone = (
        np.argwhere(blocks > hu) @ framed[:3, :3].T + framed[:3, 3] for hu in (SKIN_HU, CRANIUM_HU)
    )
    top_mm = skin[:, 0].max()
    cranium = bone[bone[:, 0] > top_mm - CRANIUM_MM]
    framed[0, 3] -= top_mm - VERTEX_MM
    framed[1, 3] -= (cranium[:, 1].min() + cranium[:, 1].max()) / 2
    return blocks, framed


def phantom() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The phantom's mean head on 4 mm, and its voxel -> frame affine."""
    still = ["deformation_mm=0", "rotation_factor=0", "shift_factor=0", "scale_sd=0"]
    preset = load_preset("base", still)
    affine = np.diag([STEP_MM] * 3 + [1.0])
    affine[:3, 3] = (-78.0, -106.0, -94.0)
    total = np.zeros((44, 57, 48), np.float32)
    for n in range(N_PHANTOMS):
        spec = draw_scan(preset, archive_sites(preset)[0], 99, n, findings={})
        total += render_scan(spec, total.shape, affine, masks=False, scanner=False).hu
    return total / N_PHANTOMS, affine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scct", type=Path, help="SCCT in HU")
    arrays = {}
    for name, (hu, affine) in {
        "adult": adult(parser.parse_args().scct),
        "phantom": phantom(),
    }.items():
        even = (hu + hu[:, :, ::-1]) / 2
        affine[2, 3] = -affine[2, 2] * (hu.shape[2] - 1) / 2
        share = (even.clip(LOW_HU, HIGH_HU) - LOW_HU) / (HIGH_HU - LOW_HU)
        arrays |= {f"{name}_share": np.rint(share * 255).astype(np.uint8), f"{name}_affine": affine}
    np.savez_compressed(REFERENCES, **arrays)
    print(REFERENCES, REFERENCES.stat().st_size)


if __name__ == "__main__":
    main()
