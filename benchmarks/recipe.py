"""What pretraining buys: ours, its terms, the paper's recipes and the floors, on the phantom.

    python benchmarks/recipe.py --size tiny --work WORK                # 2 cores; one_gpu.py: a GPU
    python benchmarks/recipe.py --size tiny --work WORK --arms ours --draws 5    # 75 CPU-minutes
    python benchmarks/recipe.py --size tiny --work WORK --presets tiny --scale 0.1  # trial
    python benchmarks/recipe.py --size tiny --work WORK --set budget_s=50 --set batch=64  # longer

Every part is a command of headct with a result in WORK: the same call goes on after any stop, and
WORK/commands.jsonl says what each took. Pretrainings of one size get the same time: a step of each
is timed side by side on this machine first (CPU seconds on a CPU), and WORK/ms_per_scan.json keeps
what was found, so that a run that goes on has the steps that it had.

Each draw of 300 labels is shared by all methods, and pretraining seed, new weights and order follow
it (`draw % seeds`), so that an interval by patient is about the mean over draws and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq
import torch
from arms import NUMBERS, SIZES, Size
from pretraining import Bench, measure, this_machine

from headct.config import load_recipe
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import PRESETS

HEADCT = (sys.executable, "-c", "from headct.cli.app import main; main()")
LABELS = 300
COUNTS = {"n_train": 900, "n_tune": 200, "n_test": 400, "n_external": 400}
STAGES = ("timing", "pools", "pretrainings", "labelled", "features", "tasks", "evaluations")
BOUNDS = {
    "finetune-ours : scratch-vit": (0.08, 0.05),
    "finetune-ours : scratch-cnn3d": (0.0, 0.0),
    "finetune-ours : probe-histogram": (None, 0.0),
    "probe-ours : probe-random": (0.05, 0.05),
}
"""Least differences of macro-AUROC inside and outside that the recipe is judged by."""


@dataclass(frozen=True)
class Job:
    """One command of headct; done where its result is there."""

    result: Path
    argv: tuple[str, ...]


class Runner:
    """Runs commands side by side and writes down what they took."""

    def __init__(self, work: Path, at_once: int, threads: int) -> None:
        self.work, self.at_once, self.lock = work, at_once, Lock()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.environment = os.environ | dict.fromkeys(names, str(threads))

    def __call__(self, what: str, jobs: Sequence[Job], at_once: int | None = None) -> None:
        """All that is not done yet; the first failure stops the rest."""
        left = [job for job in jobs if not job.result.exists()]
        print(f"{what}: {len(jobs) - len(left)} of {len(jobs)} are there", flush=True)
        with ThreadPoolExecutor(at_once or self.at_once) as pool:
            for number, _ in enumerate(pool.map(self._run, left), 1):
                done = left[number - 1].result.relative_to(self.work)
                print(f"  {number}/{len(left)} {done}", flush=True)

    def _run(self, job: Job) -> None:
        started = time.perf_counter()
        log = self.work / ("-".join(job.result.relative_to(self.work).with_suffix(".log").parts))
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*HEADCT, *job.argv], stdout=out, stderr=out, env=self.environment
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode or not job.result.exists():
            raise SystemExit(f"headct {' '.join(job.argv)}\n{log.read_text()[-2000:]}")
        log.unlink()
        row = {"command": list(job.argv), "clock_s": round(time.perf_counter() - started, 1)}
        row["cpu_s"] = round(used.ru_utime + used.ru_stime, 1)
        with self.lock, (self.work / "commands.jsonl").open("a") as lines:
            lines.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Matrix:
    """All jobs on one phantom."""

    work: Path
    preset: str
    size: Size
    n_seeds: int
    n_draws: int
    scale: float
    ms_per_scan: dict[str, float]
    fine_tuned: bool = True

    @property
    def data(self) -> Path:
        return self.work / self.preset

    def pools(self) -> Iterator[Job]:
        yield self._phantom(self.data / "unlabelled", dict.fromkeys(COUNTS, 0), self.size.n_pool)

    def labelled(self) -> Iterator[Job]:
        yield self._phantom(self.data / "labelled", COUNTS, 0)

    def _phantom(self, out: Path, counts: dict[str, int], n_pool: int) -> Job:
        """An archive; the patients of a pool are never those with labels."""
        scaled = {**counts, "n_pool": n_pool}
        values = [f"{name}={round(self.scale * n)}" for name, n in scaled.items()]
        values += [f"pool_grid={self.size.grid}", "faults=false"]
        sets = [word for value in values for word in ("--set", value)]
        cores = str(len(os.sched_getaffinity(0)))
        argv = ("phantom", "--preset", self.preset, "--output", "store", "--out", str(out))
        return Job(out / "labels.csv", (*argv, "--jobs", cores, *sets))

    def pretrainings(self) -> Iterator[Job]:
        for seed in range(self.n_seeds):  # outside: arms that take much memory come one at a time
            for name, arm in self.size.arms.items():
                steps = 1000 * self.size.budget_s / self.ms_per_scan[name] / self.size.batch
                steps = max(1, round(self.scale * steps))
                run = self.data / "runs" / f"{name}-{seed}"
                sets = (f"steps={steps}", f"batch={self.size.batch}", *arm.set)
                sets += (f"seed={seed}", "record.trackers=[]", "record.panel_every=0")
                argv = ("pretrain", arm.recipe, "--store", str(self.data / "unlabelled" / "pool"))
                argv += ("--out", str(run), *(w for s in sets for w in ("--set", s)))
                yield Job(run / "bundle" / "bundle.json", argv)

    def features(self) -> Iterator[Job]:
        store = str(self.data / "labelled" / "store")
        for floor in ("histogram", "blocks"):
            out = self.data / "features" / f"{floor}-0.parquet"
            yield Job(out, ("embed", store, "--floor", floor, "--out", str(out)))
        for seed in range(self.n_seeds):
            for name in (*self.size.arms, "random"):
                out = self.data / "features" / f"{name}-{seed}.parquet"
                trained = name if name in self.size.arms else "ours"
                argv = ("embed", store, "--bundle", self._bundle(trained, seed), "--out", str(out))
                yield Job(out, argv if name != "random" else (*argv, "--random-init", str(seed)))

    def tasks(self) -> Iterator[Job]:
        for draw in range(self.n_draws):
            seed = draw % self.n_seeds
            for name in (*self.size.arms, "random", "histogram", "blocks"):
                number = 0 if name in ("histogram", "blocks") else seed
                table = self.data / "features" / f"{name}-{number}.parquet"
                yield self._task(f"probe-{name}", draw, "probe", "--features", str(table))
            if not self.fine_tuned:
                continue
            ours = self._bundle("ours", seed)
            yield self._tuned("finetune-ours", draw, "--bundle", ours)
            yield self._tuned("scratch-vit", draw, "--from-scratch", "vit", "--bundle", ours)
            yield self._tuned("scratch-cnn3d", draw, "--from-scratch", "cnn3d")

    @property
    def evaluated(self) -> Path:
        return self.data / f"eval-{self.n_draws}-draws{'' if self.fine_tuned else '-frozen'}"

    def evaluations(self) -> Iterator[Job]:
        folders = [str(job.result.parent) for job in self.tasks()]
        there = {folder.name.rpartition("-")[0] for folder in map(Path, folders)}
        bounds = [pair.split(" : ") for pair in BOUNDS]
        pairs = [w for a, b in bounds if {a, b} <= there for w in ("--compare", f"{a}:{b}")]
        for name in self.size.arms:
            pairs += ["--compare", f"probe-ours:probe-{name}"] if name != "ours" else []
        argv = ("evaluate", *folders, "--out", str(self.evaluated), *pairs)
        yield Job(self.evaluated / "evaluation.json", argv)

    def _bundle(self, name: str, seed: int) -> str:
        return str(self.data / "runs" / f"{name}-{seed}" / "bundle")

    def _tuned(self, name: str, draw: int, *start: str) -> Job:
        short = () if self.scale == 1 else ("--set", f"steps={round(self.scale * 500)}")
        return self._task(name, draw, "finetune", *start, *short)

    def _task(self, name: str, draw: int, verb: str, *how: str) -> Job:
        out = self.data / "tasks" / f"{name}-{draw}"
        scans = self.data / "labelled"
        where = ("--store", str(scans / "store"), "--labels", str(scans / "labels.csv"))
        n_labels = str(round(self.scale * LABELS))
        what = ("--n-labels", n_labels, "--seed", str(draw), "--name", name, "--out", str(out))
        return Job(out / "task.json", (verb, *where, *how, *what))


def require_same(work: Path, size: str) -> None:
    """Take a folder, or go on in one of the same size."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "size.txt"
    if path.exists() and path.read_text() != size:
        raise SystemExit(
            f"{work} has results of {path.read_text()!r}, not {size!r}: another --work"
        )
    path.write_text(size)


def time_arms(size: Size, path: Path) -> dict[str, float]:
    """Milliseconds per scan of every pretraining with all its terms on, timed once in a folder."""
    found = json.loads(path.read_text()) if path.exists() else {}
    machine = this_machine(threads=1)
    for name, arm in size.arms.items():
        if name not in found:
            sets = (f"batch={size.batch}", *arm.set)
            recipe = load_recipe(arm.recipe, PretrainRecipe, sets, builtin="headct.recipes")
            row = measure(Bench(recipe, PRESETS[size.grid], machine), steps=4, compiled=False)
            if machine.is_gpu:  # what this process keeps is missing to the pretrainings
                torch.cuda.empty_cache()
            found[name] = row["ms_per_scan"]
            print(f"  {name}: {found[name]} ms a scan", flush=True)
            path.write_text(json.dumps(found))
    return found


def table(matrix: Matrix) -> None:
    """Macro-AUROC of every method, and the differences with what is asked of them."""
    tables = matrix.evaluated / "tables"
    rows = [r for r in pq.read_table(tables / "metrics.parquet").to_pylist() if _is_macro(r)]
    n_labels = round(matrix.scale * LABELS)
    print(f"\n{matrix.preset}, {n_labels} labels, macro-AUROC inside / outside (95 % by patient)")
    methods = dict.fromkeys(row["method"] for row in rows)
    for method in methods:
        print(f"  {method:18}" + " / ".join(_of(rows, method, inside) for inside in (True, False)))
    found = pq.read_table(tables / "comparisons.parquet").to_pylist()
    for pair in dict.fromkeys(f"{r['method_a']} : {r['method_b']}" for r in found):
        a, b = pair.split(" : ")
        here = [r for r in found if _is_macro(r) and (r["method_a"], r["method_b"]) == (a, b)]
        here.sort(key=lambda r: not r["internal"])
        text = " / ".join(f"{r['difference']:+.3f} ({r['lo']:+.3f}..{r['hi']:+.3f})" for r in here)
        asked = BOUNDS.get(pair)
        print(f"  {pair:34} {text}" + (f"   asked: {asked}" if asked else ""))


def _is_macro(row: dict[str, Any]) -> bool:
    return bool(row["finding"] == "macro" and row["metric"] == "auroc")


def _of(rows: list[dict[str, Any]], method: str, inside: bool) -> str:
    row = next(r for r in rows if r["method"] == method and r["internal"] == inside)
    return "{value:.3f} ({lo:.3f}..{hi:.3f})".format(**row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--work", type=Path, required=True, help="folder of all results")
    parser.add_argument("--presets", default="canonical,base", help="phantoms")
    parser.add_argument("--arms", help="only these, of " + ", ".join(SIZES["tiny"].arms))
    parser.add_argument("--seeds", type=int, default=3, help="pretrainings per arm")
    parser.add_argument("--draws", type=int, default=6, help="draws of labels")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts and steps")
    parser.add_argument("--jobs", type=int, default=2, help="commands at once, a thread each")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this")
    parser.add_argument("--only", choices=STAGES[1:], help="this alone, beside another call")
    parser.add_argument("--frozen", action="store_true", help="probes alone, no fine-tuning")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=N", help=f"one of {NUMBERS}"
    )
    args = parser.parse_args()
    numbers = dict(pair.partition("=")[::2] for pair in args.set)
    if not (numbers.keys() <= set(NUMBERS) and all(n.isdigit() for n in numbers.values())):
        parser.error(f"--set: one of {NUMBERS}, each a whole number")
    size = replace(SIZES[args.size], **{name: int(n) for name, n in numbers.items()})
    if args.arms:
        names = {"ours", *args.arms.split(",")}
        arms = {name: arm for name, arm in size.arms.items() if name in names}
        size = replace(size, arms=arms)
    require_same(args.work, f"{args.size} {numbers} scale={args.scale}")
    run = Runner(args.work, args.jobs, threads=1)
    ms_per_scan = time_arms(size, args.work / "ms_per_scan.json")
    how = (size, args.seeds, args.draws, args.scale, ms_per_scan, not args.frozen)
    matrices = [Matrix(args.work, preset, *how) for preset in args.presets.split(",")]
    at_once = {"pools": 1, "labelled": 1}  # they take all cores by themselves
    if torch.cuda.is_available():
        at_once["pretrainings"] = min(args.jobs, 3)  # they share its memory
    for matrix in matrices:
        for folder in ("runs", "features", "tasks"):
            (matrix.data / folder).mkdir(parents=True, exist_ok=True)
    stages = (args.only,) if args.only else STAGES[1 : STAGES.index(args.until) + 1]
    for stage in stages:
        jobs = [job for m in matrices for job in getattr(m, stage)()]
        run(stage, jobs, at_once.get(stage))
    if STAGES[-1] in stages:
        for matrix in matrices:
            table(matrix)


if __name__ == "__main__":
    main()
