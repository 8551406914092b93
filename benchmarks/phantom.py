"""How fast the phantom renders: CPU seconds per scan by grid, one thread.

    python benchmarks/phantom.py --n 20

How hard it is to read is another question: `benchmarks/difficulty.py`.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from threadpoolctl import threadpool_limits

from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import acquisition_grid, canonical_affine, draw_scan, render_scan
from headct.volume.preprocessing import PRESETS, Preprocessing

GRIDS = {
    "demo 3.3 mm": PRESETS["demo"],
    "small 2 mm": PRESETS["small"],
    "1.5 mm": Preprocessing(shape_zyx=(128, 160, 128), spacing_mm_zyx=(1.5, 1.5, 1.5)),
}


def speed(n: int) -> None:
    preset, site = load_preset("base"), load_site("hospital-a")
    spec = draw_scan(preset, site, 0, 0)
    render_scan(spec, (8, 8, 8), np.diag([3.0, 3.0, 3.0, 1.0]))
    for name, grid in GRIDS.items():
        for masks in (False, True):
            start = time.process_time()
            for patient in range(n):
                spec = draw_scan(preset, site, 0, patient)
                render_scan(spec, grid.shape_zyx, canonical_affine(spec, grid), masks=masks)
            report(name, masks, (time.process_time() - start) / n, np.prod(grid.shape_zyx))
    start, voxels = time.process_time(), 0
    for patient in range(n):
        spec = draw_scan(preset, site, 0, patient)
        shape, affine = acquisition_grid(spec)
        render_scan(spec, shape, affine)
        voxels += int(np.prod(shape))
    report("slices of hospital-a", True, (time.process_time() - start) / n, voxels / n)


def report(grid: str, masks: bool, cpu_s: float, voxels: float) -> None:
    row = {"grid": grid, "masks": masks, "cpu_s_per_scan": round(cpu_s, 4)}
    print(json.dumps(row | {"voxels": int(voxels), "us_per_voxel": round(1e6 * cpu_s / voxels, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20, help="scans per grid")
    given = parser.parse_args()
    with threadpool_limits(1):
        speed(given.n)


if __name__ == "__main__":
    main()
