"""What a token costs: forward and backward of the encoder alone on more and more tokens.

    python benchmarks/encoder.py --encoder demo                # a CPU
    python benchmarks/encoder.py --encoder base --compile      # a GPU

Prints one JSON line per number of tokens. The cost is linear in tokens where `us_per_token` is
flat: products dominate, attention's square does not yet.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from pretraining import Machine, countable, this_machine
from torch.utils.flop_counter import FlopCounterMode

from headct.model.architecture import ENCODERS
from headct.model.encoder import ViT3D


def token_costs(encoder: str, machine: Machine, compiled: bool) -> list[dict[str, Any]]:
    """Forward and backward of the encoder alone on more and more tokens: cost per token."""
    config = ENCODERS[encoder]
    rows = []
    torch.manual_seed(0)
    model = ViT3D(config.model_copy(update={"drop_path": 0.0})).to(machine.device).train()
    if compiled:
        for block in model.blocks:
            block.compile(dynamic=True)
    n_scans = 16 if machine.is_gpu else 2
    grid = (64, 64, 64)
    for n_tokens in (150, 300, 600, 1200, 2400):
        patches = torch.randn(
            n_scans, n_tokens, 3 * config.patch_voxels, device=machine.device
        ).clamp_(-1, 1)
        index = torch.arange(n_tokens, device=machine.device).expand(n_scans, -1)
        centre_mm = 100 * torch.rand(n_scans, n_tokens, 3, device=machine.device)

        def once() -> None:
            bf16 = machine.dtype == torch.bfloat16
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=bf16):
                out = model.encode(patches, centre_mm, index, grid)  # noqa: B023
            (out.cls.float().mean() + out.patches.float().mean()).backward()
            model.zero_grad(set_to_none=True)

        with countable(machine), FlopCounterMode(display=False) as counter:
            once()
        once()
        started = machine.clock()
        for _ in range(5):
            once()
        spent = (machine.clock() - started) / 5
        tflops = counter.get_total_flops() / spent / 1e12
        rows.append(
            {
                "case": f"tokens-{n_tokens}",
                "us_per_token": round(1e6 * spent / n_scans / n_tokens, 3),
                "mfu": round(tflops / machine.tflops, 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", choices=[n for n in ENCODERS if n != "fmct"], default="demo")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    for row in token_costs(args.encoder, this_machine(args.threads), args.compile):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
