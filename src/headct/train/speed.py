"""How fast a run goes and what it uses: time left, share of the device's peak, memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch

from headct.train.cost import shape_of, step_flops, terms_at
from headct.train.loop import StepRecord
from headct.train.recipe import PretrainRecipe
from headct.train.runtime import Runtime

DECLARED_BF16_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bf16 with float32 sums, from the makers' data sheets; the first name that fits counts."""
TRIAL_EDGE = {"cuda": 8192, "cpu": 1024}
TRIALS = 3


@dataclass(frozen=True)
class Peak:
    """The most that one rank's device multiplies.

    Attributes:
        flops: operations per second.
        source: the maker's figure, or a large matrix product timed here.
    """

    flops: float
    source: Literal["declared", "measured"]


def find_peak(runtime: Runtime) -> Peak:
    """The declared peak of a GPU that is known, else the rate of a large matrix product."""
    if runtime.device.type == "cuda" and runtime.dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(runtime.device)
        for key, tflops in DECLARED_BF16_TFLOPS.items():
            if key.lower() in name.lower():
                return Peak(tflops * 1e12, "declared")
    edge = TRIAL_EDGE[runtime.device.type]
    # zeros would be multiplied without effort on some devices; a pattern needs no random state
    one = (torch.arange(edge * edge, device=runtime.device) % 7 - 3).to(runtime.dtype)
    one = one.view(edge, edge)
    seconds = min(_time(one, runtime) for _ in range(TRIALS))
    return Peak(2.0 * edge**3 / seconds, "measured")


class Speedometer:
    """Numbers for a line of metrics.jsonl: `eta_s`, `mfu`, `tflops`, `peak_memory_gib`.

    Args:
        recipe: of the run.
        runtime: of this rank.
        peak: of its device.
        first_step: where this call of the run began.
    """

    def __init__(
        self, recipe: PretrainRecipe, runtime: Runtime, peak: Peak, first_step: int
    ) -> None:
        self.recipe, self.runtime, self.peak, self.first_step = recipe, runtime, peak, first_step
        self.started = time.monotonic()

    def __call__(self, record: StepRecord) -> dict[str, float]:
        """Of a step of this rank; the time left counts all that has been done between steps."""
        rate = self.flops(record) / record.seconds
        seconds_each = (time.monotonic() - self.started) / max(record.step - self.first_step, 1)
        return {
            "eta_s": (self.recipe.steps - record.step) * seconds_each,
            "mfu": rate / self.peak.flops,
            "tflops": rate / 1e12,
            "peak_memory_gib": peak_memory(self.runtime.device) / 2**30,
        }

    def flops(self, record: StepRecord) -> float:
        """Operations of this rank's micro-batches."""
        recipe = self.recipe
        terms = terms_at(recipe.objective, (record.step - 1) / recipe.steps)
        shapes = [shape_of(batch.views, recipe.encoder, terms) for batch in record.batches]
        return sum(step_flops(shape, recipe.objective, recipe.encoder) for shape in shapes)


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _time(square: torch.Tensor, runtime: Runtime) -> float:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    started = time.perf_counter()
    square @ square
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - started
