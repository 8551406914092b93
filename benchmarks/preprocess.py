"""CPU seconds and memory from files to a canonical volume, one scan at a time, one thread.

    python benchmarks/preprocess.py [--json] [--only CASE] [--repeat N]

Cases: `nifti-thick` (512 x 512 x 40, .nii.gz), `nifti-thin` (512 x 512 x 160, .nii.gz),
`dicom-thin` (512 x 512 x 160, uncompressed series), `exact-thick` and `exact-thin` (the NIfTI files
to the faithful `fmct` channels, which must be those of the pipeline: `error` is the mean
difference, in window units). Every case runs in a process of its own, so that `peak_mb` is its own.
Where monai is installed, the same scan goes through a plain pipeline of LoadImage, Orientation,
Spacing 1 mm order 3, CropForeground, three windows and Resize 96^3, and `ratio` is how much longer
that is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

CASES = ("nifti-thick", "nifti-thin", "dicom-thin", "exact-thick", "exact-thin")
N_SLICES = {"thick": 40, "thin": 160}
SPAN_MM = 200.0


def scan(n_slices: int) -> Any:
    """A phantom head of 512 x 512 x n, 0.45 mm in the plane, as a scanner stores it."""
    from headct.phantom.plan import archive_sites
    from headct.phantom.profile import load_preset
    from headct.phantom.render import render_scan
    from headct.phantom.scan import draw_scan
    from headct.volume.volume import Volume

    preset = load_preset("canonical", [])
    spec = draw_scan(preset, archive_sites(preset)[0], 0, 0)
    coarse = np.diag([SPAN_MM / n_slices, 1.8, 1.8, 1.0])
    coarse[:3, 3] = (-110.0, -115.0, -115.0)
    hu = render_scan(spec, (n_slices, 128, 128), coarse, masks=False).hu
    fine = hu.repeat(4, axis=1).repeat(4, axis=2)[:, ::-1, ::-1]
    affine = np.diag([SPAN_MM / n_slices, -0.45, -0.45, 1.0])
    affine[:3, 3] = (-110.0, 115.0, 115.0)
    noise = np.random.default_rng(0).integers(-8, 9, fine.shape, dtype=np.int16)
    fine = fine + noise
    y, x = np.ogrid[-1:1:512j, -1:1:512j]
    fine[:, y**2 + x**2 > 1] = -1024  # nothing is reconstructed outside the circle
    return Volume(np.ascontiguousarray(fine), affine)


def write_inputs(folder: Path) -> None:
    """The scans of all cases, once."""
    from headct.phantom.dicom import encode_series
    from headct.phantom.plan import plan_studies
    from headct.phantom.profile import load_preset
    from headct.phantom.study import rendered_series
    from headct.volume.nifti import write_nifti

    for kind, n_slices in N_SLICES.items():
        volume = scan(n_slices)
        write_nifti(folder / f"{kind}.nii.gz", volume)
    preset = load_preset("demo", [])
    header = rendered_series(preset, plan_studies(preset)[0])[0].header
    (folder / "series").mkdir()
    for n, data in enumerate(encode_series(volume.hu, volume.affine_zyx, header)):
        (folder / "series" / f"{n:04d}.dcm").write_bytes(data)


def prepared(case: str, folder: Path) -> Callable[[], Any]:
    """What is measured in a case."""
    from headct.volume.canonical import to_canonical
    from headct.volume.preprocessing import PRESETS
    from headct.volume.read import read_series
    from headct.volume.stretched import to_channels

    source = source_of(case, folder)
    if case.startswith("exact"):
        return lambda: to_channels(read_series(source), PRESETS["fmct"])
    return lambda: to_canonical(read_series(source), PRESETS["base"])


def source_of(case: str, folder: Path) -> Path:
    kind, size = case.split("-")
    return folder / ("series" if kind == "dicom" else f"{size}.nii.gz")


def monai_pipeline(case: str, folder: Path) -> Callable[[], Any] | None:
    """The plain pipeline on the same scan; None without monai."""
    try:
        from monai import transforms
    except ImportError:
        return None
    source = source_of(case, folder)
    windows = ((40, 80), (80, 200), (600, 2800))
    load = transforms.Compose(
        [
            transforms.LoadImage(ensure_channel_first=True, image_only=True),
            transforms.Orientation(axcodes="RAS"),
            transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode=3),
            transforms.CropForeground(),
        ]
    )
    scale = [transforms.ScaleIntensityRange(c - w / 2, c + w / 2, 0, 1, True) for c, w in windows]
    resize = transforms.Resize((96, 96, 96))

    def run() -> Any:
        cropped = load(source)
        return np.stack([np.asarray(resize(window(cropped)))[0].T for window in scale])

    return run


def measure(run: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """CPU seconds of one run, the fastest after one that warms up, and what it gave."""
    result = run()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times), result


def run_case(case: str, folder: Path, repeat: int) -> dict[str, Any]:
    cpu_s, ours = measure(prepared(case, folder), repeat)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipeline = monai_pipeline(case, folder)
    baseline, theirs = measure(pipeline, 2) if pipeline else (None, None)
    result = {
        "case": case,
        "cpu_s": round(cpu_s, 4),
        "baseline_cpu_s": baseline and round(baseline, 3),
        "ratio": baseline and round(baseline / cpu_s, 1),
        "peak_mb": round(peak_mb),
    }
    if case.startswith("exact") and theirs is not None:
        result["error"] = float(f"{np.abs(ours - theirs).mean(axis=(1, 2, 3)).max():.2g}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        write_inputs(options.prepare)
    elif options.inputs:
        print(json.dumps(run_case(options.only[0], options.inputs, options.repeat)))
    else:
        run_all(options.only or CASES, options.repeat, options.json)


def run_all(cases: Sequence[str], repeat: int, as_json: bool) -> None:
    """Each case in a process of its own: a child's peak memory begins at its parent's."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--prepare", folder], check=True)
        for case in cases:
            command = [sys.executable, __file__, "--only", case, "--inputs", folder]
            command += ["--repeat", str(repeat)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout)
            text = "  ".join(f"{k} {v}" for k, v in result.items() if v is not None)
            print(done.stdout.strip() if as_json else text, flush=True)


if __name__ == "__main__":
    main()
