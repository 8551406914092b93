"""Error of `pose = "aligned"` on phantoms whose pose is known, one JSON line per difficulty.

    python benchmarks/pose.py [--json] [--n 20]

The grid that is found is compared with the one on the same head in a scanner where it is neither
turned nor shifted: angle between them, and distance of their middles. Poses are those of
the sites (sd 5 to 9 degrees of nod) for both; heads are deformed by 2 mm (`base`) or 1.5 mm
(`canonical`), so that a head's own axes are themselves defined to about one degree only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from typing import Any

for name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

from headct.phantom.plan import archive_sites  # noqa: E402
from headct.phantom.profile import load_preset  # noqa: E402
from headct.phantom.render import acquisition_grid, draw_scan, render_scan  # noqa: E402
from headct.phantom.scan import ScanSpec, canonical_affine  # noqa: E402
from headct.volume.canonical import to_canonical  # noqa: E402
from headct.volume.head import Head, find_head  # noqa: E402
from headct.volume.pose import find_pose  # noqa: E402
from headct.volume.preprocessing import PRESETS  # noqa: E402
from headct.volume.resample import closest_ras  # noqa: E402
from headct.volume.volume import Volume  # noqa: E402

GRID = PRESETS["demo"].model_copy(update={"pose": "aligned"})
SETTINGS = ["max_matrix=160", "min_slice_mm=2.5", "rotation_factor=1", "shift_factor=1"]


def wanted_affine(spec: ScanSpec) -> np.ndarray:
    """The grid on the unturned head, carried to where the head was scanned."""
    still = replace(spec.acquisition, rotation_deg=(0.0, 0.0, 0.0), shift_mm=(0.0, 0.0, 0.0))
    lies = np.eye(4)
    lies[:3, :3] = spec.acquisition.rotation[::-1, ::-1]
    lies[:3, 3] = spec.acquisition.shift_mm[::-1]
    return lies @ canonical_affine(replace(spec, acquisition=still), GRID)


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (a, b))
    return float(np.rad2deg(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1))))


def measured(name: str, n: int) -> dict[str, Any]:
    preset = load_preset(name, SETTINGS)
    sites = archive_sites(preset)
    turned, shifted, before, cpu_s, unsure = [], [], [], [], 0
    for patient in range(n):
        spec = draw_scan(preset, sites[patient % 2], 40, patient)
        shape, affine = acquisition_grid(spec)
        volume = Volume(render_scan(spec, shape, affine, masks=False).hu, affine)
        head = find_head(*closest_ras(volume.hu, volume.affine_zyx))
        assert isinstance(head, Head)
        start = time.process_time()
        find_pose(head)
        cpu_s.append(time.process_time() - start)
        found, wanted = to_canonical(volume, GRID, head), wanted_affine(spec)
        unsure += "pose-unsure" in found.flags
        middle = [*(np.array(GRID.shape_zyx) - 1) / 2, 1]
        turned.append(angle_deg(found.affine_zyx, wanted))
        shifted.append(float(np.linalg.norm((found.affine_zyx - wanted)[:3] @ middle)))
        before.append(angle_deg(np.eye(4), wanted))
    return {
        "case": f"pose-{name}",
        "n": n,
        "unsure": unsure,
        "before_deg": round(float(np.median(before)), 2),
        "median_deg": round(float(np.median(turned)), 2),
        "p90_deg": round(float(np.quantile(turned, 0.9)), 2),
        "median_mm": round(float(np.median(shifted)), 2),
        "p90_mm": round(float(np.quantile(shifted, 0.9)), 2),
        "cpu_s": round(float(np.median(cpu_s)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--n", type=int, default=20, help="phantoms per case")
    options = parser.parse_args()
    for name in ("canonical", "base"):
        result = measured(name, options.n)
        text = "  ".join(f"{key} {value}" for key, value in result.items())
        print(json.dumps(result) if options.json else text, flush=True)


if __name__ == "__main__":
    main()
