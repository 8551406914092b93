"""Augmentation on a CPU: views of ours beside a MONAI pipeline that makes as many of the same size.

    python benchmarks/views.py [--grid small] [--scans 4]

One thread, CPU milliseconds per scan, side by side on the same heads. A scan gives the views of the
recipe of that name: two global ones and the local crops at native size.

- `ours`: one resampling per view that merges crop and pose, point spread, then the scanner's
  augmentations in HU (`headct.views`), chosen tokens and masks; windows are left to the encoder.
- `ours-axes`: the same without rotations.
- `ours-named`: crop, zoom, flip, smooth and shift of every view and nothing else, as MONAI's below.
- `monai`: three windows cached as the reference caches them, then RandSpatialCrop, Resize
  (trilinear), RandFlip, RandGaussianSmooth, RandShiftIntensity, each applied to every view.
- `monai-hu`: the same on one channel of HU, as ours.
- `monai-full`: three windows and every view resized to the whole grid, as FM-CT does.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from headct.config import load_recipe
from headct.model.tokens import select_head_tokens
from headct.phantom.plan import archive_sites
from headct.phantom.profile import load_preset
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewMaker
from headct.volume.preprocessing import PRESETS, Preprocessing
from headct.volume.window import WINDOWS

UPRIGHT = ("views.pose.rotation_lr_deg=0", "views.pose.rotation_deg=0")
NAMED = (
    *UPRIGHT,
    "views.pose.zoom=0.08",
    "views.augment.kernel.probability=1",
    "views.augment.slice_thickness.probability=1",
    *(
        f"views.augment.{name}.probability=0"
        for name in ("cupping", "skull_base", "motion_ghost", "noise", "erase", "metal")
    ),
)


def heads(n: int, grid: Preprocessing) -> torch.Tensor:
    preset = load_preset("canonical", [])
    site = archive_sites(preset)[0]
    specs = [draw_scan(preset, site, 0, patient) for patient in range(n)]
    scans = [
        render_scan(s, grid.shape_zyx, canonical_affine(s, grid), masks=False, as_ingested=True).hu
        for s in specs
    ]
    return torch.from_numpy(np.stack(scans))


def ours(recipe: PretrainRecipe, grid: Preprocessing, hu: torch.Tensor) -> Callable[[int], object]:
    patch = recipe.encoder.patch_voxels_zyx

    def select(views: torch.Tensor) -> torch.Tensor:
        return select_head_tokens(views, recipe.encoder.n_tokens, patch)

    maker = ViewMaker(recipe.views, grid, patch, select, 0)
    return lambda step: maker.make(hu, [(0, step * len(hu) + i) for i in range(len(hu))], step)


def monai(
    recipe: PretrainRecipe, grid: Preprocessing, hu: torch.Tensor, *, windows: bool, full: bool
) -> Callable[[int], object]:
    from monai import transforms as mt

    crop = recipe.views.crop
    edges = [round(crop.local_mm / mm) for mm in grid.spacing_mm_zyx]
    low = [round(crop.global_fraction[0] * n) for n in grid.shape_zyx]
    channels = [s[None].float() for s in hu]
    if windows:
        channels = [
            torch.stack([torch.from_numpy(w.apply(s.numpy())) for w in WINDOWS]) for s in hu
        ]

    def pipeline(smallest: list[int], size: list[int], any_size: bool) -> Callable[..., object]:
        steps = [
            mt.RandSpatialCrop(smallest, random_size=any_size),
            mt.Resize(size, mode="trilinear"),
            mt.RandFlip(prob=1.0, spatial_axis=2),
            mt.RandGaussianSmooth(prob=1.0),
            mt.RandShiftIntensity(0.1, prob=1.0),
        ]
        return mt.Compose(steps)

    whole = list(grid.shape_zyx)
    large = pipeline(low, whole, True)
    small = pipeline(edges, whole if full else edges, False)

    def make(_: int) -> None:
        for scan in channels:
            for _ in range(crop.n_global):
                large(scan)
            for _ in range(crop.n_local):
                small(scan)

    return make


def cpu_ms(make: Callable[[int], object], n_scans: int, repeat: int, unseen: int) -> float:
    """Median after `unseen` steps: products in tiles are compiled for each shape of a view once."""
    for step in range(unseen):
        make(step)
    times = []
    for step in range(unseen, unseen + repeat):
        started = time.process_time()
        make(step)
        times.append(time.process_time() - started)
    return 1000 * float(np.median(times)) / n_scans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", choices=["demo", "small", "base"], default="small")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--unseen", type=int, default=20, help="steps of ours before it is timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    grid = PRESETS[args.grid]
    hu = heads(args.scans, grid)
    recipe, upright, named = (
        load_recipe(args.grid, PretrainRecipe, changed, builtin="headct.recipes")
        for changed in ((), UPRIGHT, NAMED)
    )
    cases = {
        "ours": ours(recipe, grid, hu),
        "ours-axes": ours(upright, grid, hu),
        "ours-named": ours(named, grid, hu),
        "monai": monai(recipe, grid, hu, windows=True, full=False),
        "monai-hu": monai(recipe, grid, hu, windows=False, full=False),
        "monai-full": monai(recipe, grid, hu, windows=True, full=True),
    }
    found = {
        name: cpu_ms(make, args.scans, args.repeat, 1 if "monai" in name else args.unseen)
        for name, make in cases.items()
    }
    for name, ms in found.items():
        ratio = {
            f"{other} / this": round(found[other] / ms, 1) for other in found if "monai" in other
        }
        print(
            json.dumps({"case": name, "grid": args.grid, "cpu_ms_per_scan": round(ms, 1), **ratio})
        )


if __name__ == "__main__":
    main()
