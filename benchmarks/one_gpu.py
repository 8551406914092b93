"""All that one GPU is asked, in one call: speed of the recipes, and the small matrix.

    python benchmarks/one_gpu.py --work WORK --pool 1000 --budget 20      # an H200, 13 minutes
    python benchmarks/one_gpu.py --work WORK --size tiny --speed demo:4:4:mae --budget 9   # a CPU

Unlabelled phantoms are rendered while the GPU times whole steps, labelled ones while it trains.
Called again with the same WORK it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPEED = ("base:96:24:joint,fmct-dino,fmct-mae", "small:128:64:joint,mae")
COLUMNS = ("scans_per_s", "ms_per_scan", "views_ms_per_scan", "mfu", "mfu_without_views")
COLUMNS += ("mfu_of_makers_rate", "peak_gb")


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *arguments]


@contextmanager
def running(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A command for as long as the block, at most, with all that it starts."""
    process = subprocess.Popen(command, start_new_session=True, **how)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)


@contextmanager
def rendering(command: Sequence[str], leave: int) -> Iterator[None]:
    """A command beside the block, on all cores but some and behind all else."""
    cores = sorted(os.sched_getaffinity(0))

    def stand_back() -> None:
        os.sched_setaffinity(0, cores[:-leave] or cores)
        os.nice(19)

    with running(command, preexec_fn=stand_back) as process:
        yield
        if process.wait():
            raise SystemExit("rendering failed")


def run(command: Sequence[str]) -> None:
    """A command, and out with it where it fails."""
    with running(command) as process:
        if failed := process.wait():
            raise SystemExit(failed)


def time_steps(wanted: str, work: Path) -> list[dict[str, object]]:
    """Rows of `pretraining.py` for "encoder:batch:batch of the faithful recipes:cases"."""
    path = work / f"speed-{wanted.replace(':', '-').replace(',', '-')}.jsonl"
    if not path.exists():
        encoder, batch, faithful, cases = wanted.split(":")
        sizes = ("--encoder", encoder, "--batch", batch, "--batch-faithful", faithful)
        command = script("pretraining", *sizes, "--cases", cases, "--compile")
        with running(command, stdout=subprocess.PIPE, text=True) as process:
            found, _ = process.communicate()
        if process.returncode:
            raise SystemExit(process.returncode)
        path.write_text("".join(f"{row}\n" for row in found.splitlines() if row.startswith("{")))
    device, *rows = (json.loads(line) for line in path.read_text().splitlines())
    return [{**row, "on": device["device"], "of": device["matmul_tflops"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of all results")
    parser.add_argument("--size", choices=["tiny", "small"], default="small", help="of the matrix")
    parser.add_argument("--speed", nargs="*", default=SPEED, help="encoder:batch:batch:cases")
    parser.add_argument("--pool", type=int, default=1000, help="unlabelled scans")
    parser.add_argument("--budget", type=int, default=20, help="seconds of each pretraining")
    parser.add_argument("--seeds", default="3", help="pretrainings per arm")
    parser.add_argument("--draws", default="5", help="draws of labels")
    parser.add_argument("--arms", help="of the matrix; default: all")
    parser.add_argument("--scale", default="1", help="of all counts and steps of the matrix")
    parser.add_argument("--jobs", default="8", help="commands at once")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # unwind, as after Ctrl-C
    args.work.mkdir(parents=True, exist_ok=True)
    matrix = ["--size", args.size, "--work", str(args.work / "matrix"), "--presets", "base"]
    matrix += ["--seeds", args.seeds, "--draws", args.draws, "--scale", args.scale]
    matrix += ["--jobs", args.jobs, "--set", f"n_pool={args.pool}"]
    matrix += ["--set", f"budget_s={args.budget}"]
    matrix += ["--arms", args.arms] if args.arms else []
    started = time.perf_counter()
    run(script("recipe", *matrix, "--until", "timing"))
    with rendering(script("recipe", *matrix, "--only", "pools"), leave=3):
        rows = [row for wanted in args.speed for row in time_steps(wanted, args.work)]
    print("scans_per_s by the clock, ms_per_scan by a CPU's own time where there is no GPU")
    for row in rows:
        numbers = "  ".join(f"{name} {row[name]}" for name in COLUMNS if name in row)
        print(f"{row['case']} {row['encoder']}: {numbers}  ({row['on']}, {row['of']} TFLOP/s)")
    with rendering(script("recipe", *matrix, "--only", "labelled"), leave=6):
        run(script("recipe", *matrix, "--only", "pretrainings"))
    run(script("recipe", *matrix, "--frozen"))
    run(script("recipe", *matrix))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
