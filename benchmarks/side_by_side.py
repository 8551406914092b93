"""Phantoms next to real scans, in the windows that radiologists use: look at it.

    python benchmarks/side_by_side.py picture.jpg
    python benchmarks/side_by_side.py picture.jpg --real scans/series-1 scans/average.nii.gz

Each row is a head, cut at the same distances below the vertex: brain (level 40, width 80), subdural
(75, 215) and bone (600, 2800). Where a scan ends early, its top counts as the vertex. Real scans
are read from where they are and are nowhere stored: do not give the picture to anybody who may not
see the scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

import headct
from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.volume.canonical import to_canonical
from headct.volume.preprocessing import Preprocessing
from headct.volume.window import BONE, BRAIN, Window

GRID = Preprocessing(shape_zyx=(128, 152, 128), spacing_mm_zyx=(1.5, 1.5, 1.5))
SUBDURAL = Window(name="subdural", level_hu=75, width_hu=215)
CUTS = ((BRAIN, (118, 96, 82, 68, 54, 34)), (SUBDURAL, (68, 34)), (BONE, (110, 60)))
"""Window and mm below the vertex."""


def strip(hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """One row of the picture from a canonical volume, right of the patient on the left."""
    top = GRID.shape_zyx[0] - 1 - GRID.vertex_margin_mm / 1.5
    planes = [
        window.apply(hu[int(top - mm / 1.5)].astype(np.float32))[::-1, ::-1]
        for window, heights in CUTS
        for mm in heights
    ]
    return np.concatenate(planes, axis=1)


def phantom(patient: int, site: str) -> NDArray[np.int16]:
    """A head without findings, 3 mm slices."""
    spec = draw_scan(load_preset("base"), load_site(site), 0, patient, findings={})
    affine = canonical_affine(spec, GRID)
    return render_scan(spec, GRID.shape_zyx, affine, masks=False, as_ingested=True).hu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--real", nargs="*", default=[], help="series folders or NIfTI files in HU")
    parser.add_argument("--patients", type=int, nargs="*", default=[1, 2, 5, 9])
    parser.add_argument("--sites", nargs="*", default=["hospital-a", "hospital-b"])
    given = parser.parse_args()
    rows = [strip(to_canonical(headct.read_series(path), GRID).hu) for path in given.real]
    for number, patient in enumerate(given.patients):
        rows.append(strip(phantom(patient, given.sites[number % len(given.sites)])))
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(20, 2.42 * len(rows)), facecolor="black", squeeze=False
    )
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.imshow(row, cmap="gray", vmin=-1, vmax=1)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0.01)
    quality = {"quality": 75} if given.picture.suffix == ".jpg" else None
    figure.savefig(given.picture, dpi=90, facecolor="black", pil_kwargs=quality)


if __name__ == "__main__":
    main()
