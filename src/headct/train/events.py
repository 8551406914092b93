"""RUN/events.jsonl: when a run was started, resumed, stopped, finished, and on what."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from headct import __version__
from headct.run import append_jsonl, read_jsonl
from headct.train.runtime import Runtime
from headct.views.backend import why_no_kernels

FILE = "events.jsonl"


class Events:
    """Writes the lines of a run, on its main rank.

    Args:
        folder: RUN.
        runtime: what the run is computed on.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.file, self.runtime = folder / FILE, runtime

    def note(self, event: str, step: int, more: dict[str, Any]) -> None:
        """Append a line, and flush it to the disk."""
        if not self.runtime.is_main:
            return
        row = {
            "event": event,
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "headct": __version__,
            "device": self.runtime.device.type,
            "precision": str(self.runtime.dtype).removeprefix("torch."),
            "world_size": self.runtime.world_size,
            "threads": torch.get_num_threads(),
            "no_kernels": why_no_kernels(self.runtime.device),
        }
        append_jsonl(self.file, [row | more], durable=True)

    def tell_what_differs(self) -> None:
        """Say so where a run goes on with another number of ranks or threads."""
        rows = list(read_jsonl(self.file))
        if not self.runtime.is_main or not rows:
            return
        before, now = rows[-1]["world_size"], self.runtime.world_size
        if before != now:
            print(
                f"earlier {before} ranks, now {now}: batch, schedule and order of the scans"
                " stay; random numbers that ranks draw and the rounding of sums do not",
                file=sys.stderr,
            )
        before, now = rows[-1]["threads"], torch.get_num_threads()
        if before != now and self.runtime.device.type == "cpu":
            print(
                f"earlier {before} threads, now {now}: sums are rounded in another order; for"
                f" the same weights to the bit give --threads {before}",
                file=sys.stderr,
            )
