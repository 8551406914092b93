"""How fast the phantom renders, and how much of it can be read without knowing any anatomy.

    python benchmarks/phantom.py speed
    python benchmarks/phantom.py floors --preset base --n-train 300 --n-test 400 --jobs 2

`speed` prints CPU seconds per scan by grid, one thread. `floors` prints macro-AUROC inside (first
site) and outside (last site) of an HU histogram and of block averages, each with logistic
regression: a finding that these can read is too easy.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from threadpoolctl import threadpool_limits

from headct.phantom.profile import FINDINGS, load_preset, load_site
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


def one(job: tuple[str, str, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histogram, block means and labels of one scan."""
    preset_name, site_name, seed, patient = job
    preset, site, grid = load_preset(preset_name), load_site(site_name), PRESETS["demo"]
    spec = draw_scan(preset, site, seed, patient)
    affine = canonical_affine(spec, grid)
    scan = render_scan(spec, grid.shape_zyx, affine, masks=False, as_ingested=True)
    hu = scan.hu.astype(np.float32)
    edges = np.array([-2000, -500, -200, -100, -50, -20, *range(-10, 100, 3), 150, 300, 800, 9e4])
    histogram = np.sqrt(np.histogram(hu, edges)[0] / hu.size)
    brain = np.clip(hu, 0, 80)
    blocks = brain.reshape(6, 8, 8, 8, 6, 8).mean(axis=(1, 3, 5)).ravel()
    return histogram, blocks, np.array([scan.truth["labels"][f] for f in FINDINGS])


def floors(preset: str, n_train: int, n_test: int, jobs: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sites = load_preset(preset).sites[:2]
    parts = {
        "train": [(preset, sites[0], 0, n) for n in range(n_train)],
        "inside": [(preset, sites[0], 0, 100_000 + n) for n in range(n_test)],
        "outside": [(preset, sites[-1], 0, 200_000 + n) for n in range(n_test)],
    }
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        data = {
            part: [np.stack(c) for c in zip(*pool.map(one, todo, chunksize=16), strict=True)]
            for part, todo in parts.items()
        }
    for index, features in enumerate(("hu histogram", "block means")):
        scores: dict[str, dict[str, float]] = {"inside": {}, "outside": {}}
        for column, finding in enumerate(FINDINGS):
            y = data["train"][2][:, column]
            if len(set(y)) < 2:
                continue
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced")
            ).fit(data["train"][index], y)
            for part, found in scores.items():
                score = model.decision_function(data[part][index])
                found[finding] = float(roc_auc_score(data[part][2][:, column], score))
        for part, found in scores.items():
            macro = float(np.mean(list(found.values())))
            rounded = {finding: round(value, 2) for finding, value in found.items()}
            print(
                json.dumps({"features": features, "test": part, "macro": round(macro, 3)} | rounded)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "floors"])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--n", type=int, default=20, help="scans per grid for speed")
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--n-test", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with threadpool_limits(1):
        if given.what == "speed":
            speed(given.n)
        else:
            floors(given.preset, given.n_train, given.n_test, given.jobs)


if __name__ == "__main__":
    main()
