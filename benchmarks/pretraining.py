"""What a step of pretraining costs: scans/s, FLOPs, MFU, memory, beside the paper's recipes.

    python benchmarks/pretraining.py --encoder demo --batch 16               # a CPU, minutes
    python benchmarks/pretraining.py --encoder base --batch 64 --compile     # a GPU

Prints one JSON line per case, then the ratios. A step is whole: views from int16 HU, forward,
backward, optimizer, teacher. All recipes run at the same encoder and on the same grid, one after
the other in this process, on heads of noise.

- `mae`, `mae+lat`, `joint`: ours; `joint` has every term on from the first step.
- `fmct-dino`, `fmct-mae`: the faithful recipes, every patch computed, every crop stretched.
- `tflops` counts the products of model and decoder, forward and backward; `mfu` is over the rate of
  a large matrix product in the same precision on the same device, measured in the same call;
  `mfu_of_makers_rate` is over the data sheet's, where the GPU is known.
- `--attention cudnn` and the like hold one kernel of attention against torch's choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headct.config import load_recipe
from headct.model.architecture import ENCODERS
from headct.model.tokens import grid_shape, select_head_tokens
from headct.objective.joint import JointObjective
from headct.train.distribute import ComputeConfig, prepare
from headct.train.feed import made_ahead
from headct.train.optim import make_optimizer, set_schedule
from headct.train.recipe import PretrainRecipe
from headct.train.runtime import Runtime, choose_dtype
from headct.train.speed import find_peak
from headct.views.batch import ViewBatch, ViewMaker
from headct.volume.preprocessing import PRESETS, Preprocessing

NO_LAT, NO_CLS = "objective.lat.weight=0", "objective.cls={weight=0}"
ON = ("objective.lat.ramp=[0,0]", "objective.cls.ramp=[0,0]")
OURS = {"mae": (NO_LAT, NO_CLS), "mae+lat": (*ON, NO_CLS), "joint": ON}
FAITHFUL = ("fmct-dino", "fmct-mae")
CASES = (*OURS, *FAITHFUL)
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how fast a matrix product is there."""

    device: torch.device
    dtype: torch.dtype
    tflops: float

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def clock(self) -> float:
        """CPU seconds on a CPU, which others may be using too; else seconds."""
        self.wait()
        return time.perf_counter() if self.is_gpu else time.process_time()


def this_machine(threads: int) -> Machine:
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    machine = Machine(device, choose_dtype("auto", device), 0.0)
    n = 8192 if gpu else 2048
    a, b = (torch.randn(n, n, device=device, dtype=machine.dtype) for _ in range(2))
    times = []
    for _ in range(8):
        started = machine.clock()
        for _ in range(5):
            a @ b
        times.append((machine.clock() - started) / 5)
    return Machine(device, machine.dtype, 2 * n**3 / statistics.median(times[2:]) / 1e12)


def recipe_for(case: str, encoder: str, batch: int, extra: Sequence[str]) -> PretrainRecipe:
    """A recipe at the size of an encoder."""
    if case in OURS:
        sets = (*OURS[case], f"encoder={encoder}")
        name = "base" if encoder == "large" else encoder
    else:
        grid = grid_of(encoder)
        patches = grid_shape(grid.shape_zyx, ENCODERS[encoder].patch_voxels_zyx)
        n = patches[0] * patches[1] * patches[2]
        sets = (f"encoder.preset={encoder}", f"encoder.n_tokens={n}")
        sets += (f"encoder.position_grid_zyx={list(patches)}",)
        if case == "fmct-mae" and ENCODERS[encoder].width < 768:
            width, heads = ENCODERS[encoder].width, ENCODERS[encoder].heads
            sets += (f"objective.decoder.width={width}", f"objective.decoder.heads={heads}")
        name = case
    sets += (f"batch={batch}", *extra)
    return load_recipe(name, PretrainRecipe, sets, builtin="headct.recipes")


def grid_of(encoder: str) -> Preprocessing:
    return PRESETS["base" if encoder == "large" else encoder]


def heads(n: int, grid: Preprocessing, device: torch.device) -> Tensor:
    """Ellipsoids of noise around 35 HU in air: [n z y x] int16."""
    axes = [
        (torch.arange(size, device=device) - (size - 1) / 2) * mm
        for size, mm in zip(grid.shape_zyx, grid.spacing_mm_zyx, strict=True)
    ]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    inside = (z / 90) ** 2 + (y / 95) ** 2 + (x / 75) ** 2 < 1
    noise = 35 + 10 * torch.randn(n, *grid.shape_zyx, device=device)
    return torch.where(inside, noise, -1000).to(torch.int16)


class Bench:
    """One recipe, ready to step."""

    def __init__(self, recipe: PretrainRecipe, grid: Preprocessing, machine: Machine) -> None:
        self.recipe, self.machine = recipe, machine
        patch = recipe.encoder.patch_voxels_zyx

        def select(hu: Tensor) -> Tensor:
            return select_head_tokens(hu, recipe.encoder.n_tokens, patch)

        torch.manual_seed(0)
        self.maker = ViewMaker(recipe.views, grid, patch, select, recipe.seed)
        self.hu = heads(recipe.batch, grid, machine.device)
        self.objective = JointObjective(recipe.objective, recipe.encoder).to(machine.device).train()
        self.optimizer = make_optimizer(self.objective, recipe.optim)
        self.schedule = recipe.optim.schedule(recipe.steps)

    def compile(self) -> None:
        runtime = Runtime(self.machine.device, self.machine.dtype)
        torch._dynamo.reset()  # it compiles a few shapes of a function, and other cases had theirs
        prepare(self.objective, ComputeConfig(compile=True), runtime)

    def views(self, step: int) -> ViewBatch:
        places = [(0, step * self.recipe.batch + i) for i in range(self.recipe.batch)]
        on = self.recipe.objective.cls.weight > 0
        return self.maker.make(self.hu, places, step, with_locals=on)

    def learn(self, views: ViewBatch) -> None:
        machine = self.machine
        bf16 = machine.dtype == torch.bfloat16
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=bf16):
            loss = self.objective(views, 0.5, with_rank=False)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.student.parameters(), 3.0)
        self.optimizer.step()
        self.objective.after_step(0.99)
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, steps: int) -> tuple[float, float]:
        """Take steps as training does; seconds of each by the machine's clock and by the wall's.

        One step more goes before, after which a GPU has the next views ready.
        """
        times = []
        for number, views in enumerate(self.views_ahead(steps + 1)):
            set_schedule(self.optimizer, self.schedule(number))
            self.learn(views)
            times.append((self.machine.clock(), time.perf_counter()))
        (first, first_wall), (last, last_wall) = times[0], times[-1]
        return (last - first) / steps, (last_wall - first_wall) / steps

    def views_ahead(self, steps: int) -> Iterator[ViewBatch]:
        """Views of the first steps. A GPU makes those of the next while one is taken."""
        if not self.machine.is_gpu:
            yield from (self.views(number) for number in range(steps))
            return
        stream = torch.cuda.Stream(priority=-1)
        numbers = ((number,) for number in range(steps + 1))
        yield from islice(made_ahead(self.views, numbers, stream), steps)

    def apart(self, steps: int) -> tuple[float, float]:
        """Seconds a step of the views alone, and of all the rest."""
        views_s = learn_s = 0.0
        for number in range(1, steps + 1):
            started = self.machine.clock()
            views = self.views(number)
            made = self.machine.clock()
            self.learn(views)
            views_s += (made - started) / steps
            learn_s += (self.machine.clock() - made) / steps
        return views_s, learn_s

    def flops_per_scan(self, steps: int) -> float:
        """Mean over the batches whose shapes the steps after the first one draw."""
        total = 0
        for number in range(1, steps + 1):
            views = self.views(number)
            with countable(self.machine), flop_counter() as counter:
                self.learn(views)
            total += counter.get_total_flops()
        return total / steps / self.recipe.batch


def flop_counter() -> FlopCounterMode:
    """torch's, which does not know the product that a teacher's GELU is a part of."""

    def product(_: Sequence[int], a: Sequence[int], b: Sequence[int], **_how: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._addmm_activation: product}
    )


def countable(machine: Machine) -> AbstractContextManager[object]:
    """Attention by plain products on a CPU, whose fused kernel torch's counter does not know."""
    return nullcontext() if machine.is_gpu else sdpa_kernel(SDPBackend.MATH)


def measure(bench: Bench, steps: int, compiled: bool) -> dict[str, Any]:
    machine, batch = bench.machine, bench.recipe.batch
    flops = bench.flops_per_scan(steps)
    if compiled:
        bench.compile()
    bench.run(steps)
    if machine.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    spent, wall = bench.run(steps)
    peak = torch.cuda.max_memory_allocated() if machine.is_gpu else 0
    views_s, learn_s = bench.apart(steps)
    row = {
        "scans_per_s": round(batch / wall, 2),
        "ms_per_scan": round(1000 * spent / batch, 2),
        "views_ms_per_scan": round(1000 * views_s / batch, 2),
        "gflop_per_scan": round(flops / 1e9, 2),
        "tflops": round(flops * batch / spent / 1e12, 3),
        "mfu": round(flops * batch / spent / 1e12 / machine.tflops, 3),
        "mfu_without_views": round(flops * batch / learn_s / 1e12 / machine.tflops, 3),
    }
    if not machine.is_gpu:
        return row
    makers = find_peak(Runtime(machine.device, machine.dtype))
    if makers.source == "declared":
        row["mfu_of_makers_rate"] = round(flops * batch / spent / makers.flops, 3)
    return row | {"peak_gb": round(peak / 1e9, 2)}


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours over the faithful recipes."""
    found = {}
    if {"joint", *FAITHFUL} <= rows.keys():
        for what in ("gflop_per_scan", "ms_per_scan"):
            both = sum(rows[case][what] for case in FAITHFUL)
            found[f"joint / (fmct-dino + fmct-mae), {what}"] = rows["joint"][what] / both
        faster = rows["fmct-dino"]["ms_per_scan"] / rows["joint"]["ms_per_scan"]
        found["scans/s, joint / fmct-dino"] = faster
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", choices=[n for n in ENCODERS if n != "fmct"], default="demo")
    parser.add_argument("--batch", type=int, default=16, help="scans per step")
    parser.add_argument("--batch-faithful", type=int, help="the same of fmct-dino and fmct-mae")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--attention", choices=ATTENTION, help="this kernel, not torch's choice")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--set", action="append", default=[], help="key=value of every recipe")
    args = parser.parse_args()
    machine = this_machine(args.threads)
    name = torch.cuda.get_device_name() if machine.is_gpu else f"CPU, {args.threads} threads"
    print(
        json.dumps(
            {"device": name, "dtype": str(machine.dtype), "matmul_tflops": round(machine.tflops, 3)}
        )
    )
    rows = {}
    for case in args.cases.split(",") if args.cases else []:
        batch = args.batch_faithful if args.batch_faithful and case in FAITHFUL else args.batch
        recipe = recipe_for(case, args.encoder, batch, args.set)
        bench = Bench(recipe, grid_of(args.encoder), machine)
        with sdpa_kernel(ATTENTION[args.attention]) if args.attention else nullcontext():
            rows[case] = measure(bench, args.steps, args.compile)
        print(json.dumps({"case": case, "encoder": args.encoder, **rows[case]}), flush=True)
        del bench
    for what, value in ratios(rows).items():
        print(f"{what}: {value}")


if __name__ == "__main__":
    main()
