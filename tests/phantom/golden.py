"""Digests of scans.

    python tests/phantom/golden.py > tests/phantom/golden.json

Write them anew only where the phantom was meant to change; archives of other versions then differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from headct.phantom.profile import DRAWN_FINDINGS, load_preset, load_site, preset_names
from headct.phantom.render import (
    Rendered,
    ScanSpec,
    acquisition_grid,
    canonical_affine,
    draw_scan,
    mirrored,
    render_scan,
)
from headct.volume.preprocessing import PRESETS

GRID = PRESETS["demo"]
SEED = 7
MATRIX, SLICE_MM = 48, 6.0
UNUSUAL: dict[str, Callable[[ScanSpec], bool]] = {
    "tilt": lambda spec: abs(spec.acquisition.gantry_tilt_deg) > 8,
    "metal": lambda spec: len(spec.implants) > 2,
    "contrast": lambda spec: spec.acquisition.contrast is not None,
    "bone": lambda spec: spec.acquisition.bone,
    "moved": lambda spec: spec.acquisition.ghost is not None,
    "correlated": lambda spec: spec.acquisition.noise_correlated,
}
"""What the first patient of hospital C who has it is rendered for."""


def on_the_grid(spec: ScanSpec) -> Rendered:
    """As ingest would have it."""
    return render_scan(spec, GRID.shape_zyx, canonical_affine(spec, GRID), as_ingested=True)


def in_slices(spec: ScanSpec) -> Rendered:
    """As the scanner made it, on a coarse matrix."""
    coarse = replace(spec.acquisition, matrix=MATRIX, slice_thickness_mm=SLICE_MM)
    spec = replace(spec, acquisition=coarse)
    return render_scan(spec, *acquisition_grid(spec))


def scans() -> Iterator[tuple[str, Rendered]]:
    """Two sites of each preset, unusual protocols, all findings, a later and a mirrored scan."""
    for name in preset_names():
        preset = load_preset(name)
        for site in ("hospital-a", "hospital-b"):
            yield f"{name}, {site}", on_the_grid(draw_scan(preset, load_site(site), SEED, 1))
    base, trauma = load_preset("base"), load_site("hospital-c")
    for name, has in UNUSUAL.items():
        drawn = (draw_scan(base, trauma, SEED, patient) for patient in range(400))
        yield f"base, hospital-c, {name}", in_slices(next(spec for spec in drawn if has(spec)))
    everything = dict.fromkeys(DRAWN_FINDINGS, True)
    spec = draw_scan(base, trauma, SEED, 2, findings=everything)
    yield "base, all findings", on_the_grid(spec)
    yield "base, all findings, mirrored", in_slices(mirrored(spec))
    yield "base, third scan", on_the_grid(draw_scan(base, trauma, SEED, 3, scan=2))


def digest(scan: Rendered) -> str:
    """Of HU, masks and labels."""
    found = hashlib.sha256(scan.hu.astype("<i2").tobytes())
    for name in sorted(scan.masks):
        found.update(name.encode() + np.packbits(scan.masks[name]).tobytes())
    found.update(json.dumps(scan.truth["labels"], sort_keys=True).encode())
    return found.hexdigest()


if __name__ == "__main__":
    json.dump({name: digest(scan) for name, scan in scans()}, sys.stdout, indent=1)
    print()
