"""All that one GPU is asked, in one call: speed of the recipes, and the small matrix.

    python benchmarks/one_gpu.py --work WORK --pool 1500 --budget 35      # an H200, ten minutes
    python benchmarks/one_gpu.py --work WORK --size tiny --speed demo:4:4:mae --budget 9   # a CPU

Phantoms are rendered by all cores but two while the GPU times whole steps; the matrix has it alone
then. Called again with the same WORK it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SPEED = ("base:96:24:joint,fmct-dino,fmct-mae", "small:128:64:joint,mae")
COLUMNS = ("scans_per_s", "ms_per_scan", "views_ms_per_scan", "mfu", "mfu_without_views", "peak_gb")


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *arguments]


def rendering(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A command on all cores but two, which are left to launch what the GPU does."""
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[:-2] or cores
    return subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, mine))


def time_steps(wanted: str, work: Path) -> list[dict[str, object]]:
    """Rows of `pretraining.py` for "encoder:batch:batch of the faithful recipes:cases"."""
    path = work / f"speed-{wanted.replace(':', '-').replace(',', '-')}.jsonl"
    if not path.exists():
        encoder, batch, faithful, cases = wanted.split(":")
        sizes = ("--encoder", encoder, "--batch", batch, "--batch-faithful", faithful)
        command = script("pretraining", *sizes, "--cases", cases, "--compile")
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        path.write_text("".join(f"{row}\n" for row in found.splitlines() if row.startswith("{")))
    device, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return [{**row, "on": device["device"], "of": device["matmul_tflops"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of all results")
    parser.add_argument("--size", choices=["tiny", "small"], default="small", help="of the matrix")
    parser.add_argument("--speed", nargs="*", default=SPEED, help="encoder:batch:batch:cases")
    parser.add_argument("--pool", type=int, default=1500, help="unlabelled scans")
    parser.add_argument("--budget", type=int, default=35, help="seconds of each pretraining")
    parser.add_argument("--arms", help="of the matrix; default: all")
    parser.add_argument("--scale", default="1", help="of all counts and steps of the matrix")
    parser.add_argument("--jobs", default="8", help="commands at once")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    matrix = ["--size", args.size, "--work", str(args.work / "matrix"), "--presets", "base"]
    matrix += ["--frozen", "--seeds", "1", "--draws", "5", "--scale", args.scale]
    matrix += ["--jobs", args.jobs, "--set", f"n_pool={args.pool}"]
    matrix += ["--set", f"budget_s={args.budget}"]
    matrix += ["--arms", args.arms] if args.arms else []
    started = time.perf_counter()
    if failed := subprocess.run(script("recipe", *matrix, "--until", "timing")).returncode:
        raise SystemExit(failed)
    phantoms = rendering(script("recipe", *matrix, "--until", "phantoms"))
    try:
        rows = [row for wanted in args.speed for row in time_steps(wanted, args.work)]
    except subprocess.CalledProcessError as error:
        phantoms.terminate()
        raise SystemExit(f"timing failed: {' '.join(error.cmd)}") from None
    if phantoms.wait():
        raise SystemExit("rendering failed")
    print("scans_per_s by the clock, ms_per_scan by a CPU's own time where there is no GPU")
    for row in rows:
        numbers = "  ".join(f"{name} {row[name]}" for name in COLUMNS if name in row)
        print(f"{row['case']} {row['encoder']}: {numbers}  ({row['on']}, {row['of']} TFLOP/s)")
    failed = subprocess.run(script("recipe", *matrix), check=False).returncode
    print(f"{time.perf_counter() - started:.0f} s")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
