"""RUN/events.jsonl: when a run was started, resumed, stopped, finished or failed; lost scans."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from headct import __version__
from headct.atomic import write_text
from headct.errors import DISK_FULL
from headct.run import append_jsonl, read_jsonl
from headct.train.loop import StepRecord, TrainState
from headct.train.runtime import RANK_LOST, Runtime, is_of_another_rank
from headct.views.backend import why_no_kernels
from headct.views.loader import too_many_unreadable

FILE = "events.jsonl"
UNREADABLE = "unreadable"


class Events:
    """Writes the lines of a run: those of its course on the main rank.

    Args:
        folder: RUN.
        runtime: what the run is computed on.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.file, self.runtime = folder / FILE, runtime

    def note(self, event: str, step: int, more: dict[str, Any] | None = None) -> None:
        """Append a line with the number of scans that could not be read so far."""
        if self.runtime.is_main:
            self.write(event, step, {"unreadable_scans": self.count_unreadable()} | (more or {}))

    def write(self, event: str, step: int, more: dict[str, Any]) -> None:
        """Append a line, and flush it to the disk."""
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

    def failed(self, step: int, error: Exception) -> None:
        """Append why this rank cannot go on; nothing where the disk or the file is what failed."""
        reason = getattr(error, "code", type(error).__name__)
        if is_of_another_rank(error):
            reason = RANK_LOST
        elif isinstance(error, OSError) and error.errno in DISK_FULL:
            reason = "disk-full"
        with suppress(OSError, ValueError):
            more = {"unreadable_scans": self.count_unreadable(), "rank": self.runtime.rank}
            self.write("failed", step, {"reason": reason} | more)

    def unreadable(self) -> set[str]:
        """Names of the scans that could not be read, on any rank and in any call."""
        return {row["scan_id"] for row in read_jsonl(self.file) if row["event"] == UNREADABLE}

    def count_unreadable(self) -> int:
        """How many they are."""
        return len(self.unreadable())

    def forget_unreadable(self, after: int) -> None:
        """Take out the scans of steps that are done again."""
        rows = list(read_jsonl(self.file))
        kept = [row for row in rows if row["event"] != UNREADABLE or row["step"] <= after]
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in kept))

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


class UnreadableScans:
    """Hook: say and write each scan that a step had to do without; end a run that lacks too many.

    Whichever ranks, threads and calls came upon them, the run ends after the same step.

    Args:
        scan_ids: pseudonymous names by row of the store.
        most: scans that are replaced before the run ends.
        events: where all ranks and calls of a run write; without, this process alone counts.
    """

    def __init__(self, scan_ids: Sequence[str], most: float, events: Events | None = None) -> None:
        self.scan_ids, self.most, self.events = scan_ids, most, events
        self.known: set[str] = set()

    def __call__(self, _: TrainState, record: StepRecord) -> None:
        """Look at what was replaced in a step.

        Raises:
            TrainingError: too many scans were.
        """
        new: set[str] = set()
        for lost in (lost for batch in record.batches for lost in batch.scans.unreadable):
            scan, instead = self.scan_ids[lost.row], self.scan_ids[lost.replaced_by]
            if self.events is not None:
                names = {"scan_id": scan, "reason": lost.reason, "replaced_by": instead}
                rank = {"rank": self.events.runtime.rank}
                self.events.write(UNREADABLE, record.step, names | rank)
            if scan not in self.known | new:
                new.add(scan)
                print(
                    f"step {record.step}: scan {scan} cannot be read [{lost.reason}];"
                    f" {instead} came in its place",
                    file=sys.stderr,
                )
        if new:
            self.known |= new | (self.events.unreadable() if self.events else set())
            if len(self.known) > self.most:
                raise too_many_unreadable(self.known, len(self.scan_ids), self.most)
