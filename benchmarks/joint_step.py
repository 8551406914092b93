"""Time and FLOPs of one step of the joint objective, term by term, at the size of an encoder.

    python benchmarks/joint_step.py --encoder demo --scans 16 --threads 2

Prints one JSON line per set of terms and precision: milliseconds of CPU and of the clock per scan
(the fastest of several steps, forward and backward, without the optimizer), GFLOP per scan.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from headct.model.architecture import ENCODERS, EncoderConfig
from headct.objective.dino import ClsConfig
from headct.objective.joint import DecoderConfig, JointConfig, JointObjective
from headct.objective.mae import LatConfig, MaeConfig
from headct.views.batch import ViewBatch
from headct.volume.preprocessing import PRESETS

NO_MAE, NO_LAT, NO_CLS = MaeConfig(weight=0), LatConfig(weight=0), ClsConfig(weight=0)
LAT = LatConfig(ramp=(0, 0))
CODING_RATE = ClsConfig(ramp=(0, 0))
SINKHORN = ClsConfig(ramp=(0, 0), objective="sinkhorn")
TERMS = {
    "mae": {"lat": NO_LAT, "cls": NO_CLS},
    "lat": {"mae": NO_MAE, "lat": LAT, "cls": NO_CLS},
    "cls, coding-rate": {"mae": NO_MAE, "lat": NO_LAT, "cls": CODING_RATE},
    "cls, sinkhorn": {"mae": NO_MAE, "lat": NO_LAT, "cls": SINKHORN},
    "mae + lat": {"lat": LAT, "cls": NO_CLS},
    "mae + lat + cls": {"lat": LAT, "cls": CODING_RATE},
}


def some_views(
    args: argparse.Namespace, config: EncoderConfig, shape: tuple[int, ...]
) -> ViewBatch:
    """Noise in the shape of a batch: its content does not change the cost."""
    rows = args.scans * 2
    patch = config.patch_voxels_zyx
    n_patches = torch.tensor([n // p for n, p in zip(shape, patch, strict=True)]).prod().item()
    keep = torch.rand(rows, int(n_patches)).argsort(1)[:, : config.n_tokens].sort(1).values
    masked = torch.zeros(keep.shape, dtype=torch.bool)
    n_masked = round(args.mask_ratio * keep.shape[1])
    masked.scatter_(1, torch.rand(keep.shape).argsort(1)[:, :n_masked], True)
    local = [round(args.local_patches * p) for p in patch]
    return ViewBatch(
        globals_hu=40 + 40 * torch.randn(args.scans, 2, *shape),
        locals_hu=40 + 40 * torch.randn(args.scans, args.locals, *local),
        keep=keep.view(args.scans, 2, -1),
        masked=masked.view(args.scans, 2, -1),
        flipped=torch.zeros(args.scans, 2, dtype=torch.bool),
        spacing_mm_zyx=config.spacing_mm_zyx,
    )


def step(objective: JointObjective, views: ViewBatch, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = objective(views, 0.5)["loss"]
    loss.backward()
    objective.zero_grad()
    objective.after_step(0.99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", choices=ENCODERS, default="demo")
    parser.add_argument("--scans", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--locals", type=int, default=2)
    parser.add_argument("--local-patches", type=int, default=3, help="edge of a local crop")
    parser.add_argument("--mask-ratio", type=float, default=0.65)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = ENCODERS[args.encoder]
    preset = "base" if args.encoder == "large" else args.encoder
    views = some_views(args, config, PRESETS[preset].shape_zyx)
    decoder = DecoderConfig(width=192, depth=2, heads=3)
    for name, terms in TERMS.items():
        objective = JointObjective(JointConfig(decoder=decoder, **terms), config).train()
        with FlopCounterMode(display=False) as counter:
            step(objective, views, bf16=False)
        gflop = counter.get_total_flops() / args.scans / 1e9
        for bf16 in (False, True):
            step(objective, views, bf16)
            clock_s, cpu_s = [], []
            for _ in range(args.steps):
                started, cpu = time.perf_counter(), time.process_time()
                step(objective, views, bf16)
                clock_s.append(time.perf_counter() - started)
                cpu_s.append(time.process_time() - cpu)
            row = {
                "terms": name,
                "precision": "bf16" if bf16 else "fp32",
                "ms_per_scan": round(1000 * min(clock_s) / args.scans, 1),
                "cpu_ms_per_scan": round(1000 * min(cpu_s) / args.scans, 1),
                "gflop_per_scan": round(gflop, 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
