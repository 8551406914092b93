"""RUN/events.jsonl: when a run was started, resumed, stopped, finished or failed; lost scans."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from headct import __version__
from headct.atomic import write_text
from headct.errors import HeadctError
from headct.run import append_jsonl, read_jsonl
from headct.train.loop import Hook, StepRecord, TrainState
from headct.train.runtime import Runtime
from headct.views.backend import why_no_kernels
from headct.views.loader import Unreadable, too_many_unreadable

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

    def failed(self, step: int, error: HeadctError) -> None:
        """Append why this rank cannot go on."""
        more = {"unreadable_scans": self.count_unreadable(), "rank": self.runtime.rank}
        self.write("failed", step, {"reason": error.code} | more)

    def unreadable(self, until: float = math.inf) -> set[str]:
        """Names of the scans that no rank could read, up to a step."""
        rows = (row for row in read_jsonl(self.file) if row["event"] == UNREADABLE)
        return {row["scan_id"] for row in rows if row["step"] <= until}

    def count_unreadable(self) -> int:
        """Scans that could not be read, on any rank, each counted once."""
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


class UnreadableWriter:
    """Hook: a line for each scan of this rank that a step had to do without, and what came instead.

    Args:
        events: where the lines go.
        scan_ids: pseudonymous names by row of the store.
        most: scans, of all ranks and earlier calls, that are replaced before the run ends.
    """

    def __init__(self, events: Events, scan_ids: Sequence[str], most: float) -> None:
        self.events, self.scan_ids, self.most = events, scan_ids, most

    def __call__(self, _: TrainState, record: StepRecord) -> None:
        """Write where a scan was replaced.

        Raises:
            TrainingError: too many were.
        """
        found = list(_lost(record))
        for lost in found:
            names = {
                "scan_id": self.scan_ids[lost.row],
                "reason": lost.reason,
                "replaced_by": self.scan_ids[lost.replaced_by],
            }
            rank = {"rank": self.events.runtime.rank}
            self.events.write(UNREADABLE, record.step, names | rank)
        if found and len(all_ranks := self.events.unreadable()) > self.most:
            raise too_many_unreadable(all_ranks, len(self.scan_ids), self.most)


def say_unreadable(scan_ids: Sequence[str]) -> Hook:
    """Hook: say each scan that cannot be read on stderr, once.

    Args:
        scan_ids: pseudonymous names by row.
    """
    said: set[int] = set()

    def say(_: TrainState, record: StepRecord) -> None:
        for lost in _lost(record):
            if lost.row not in said:
                said.add(lost.row)
                print(
                    f"step {record.step}: scan {scan_ids[lost.row]} cannot be read"
                    f" [{lost.reason}]; {scan_ids[lost.replaced_by]} came in its place",
                    file=sys.stderr,
                )

    return say


def _lost(record: StepRecord) -> Iterator[Unreadable]:
    for batch in record.batches:
        yield from batch.scans.unreadable
