"""What a run writes and shows while it goes: metrics, steps that were not applied, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headct.atomic import write_text
from headct.progress import Tracker
from headct.run import append_jsonl, read_jsonl
from headct.train.loop import StepRecord, TrainState

Alarms = Callable[[Mapping[str, float]], list[str]]


class MetricsWriter:
    """Hook: a line of metrics.jsonl where it is due, and for each step that was not applied.

    A line has step, seen_scans, the terms and guards, what was scheduled, the gradient norm,
    scans_per_s, wait_share (of the step's time, before its views were there or, on a GPU, launched)
    and what is measured besides. A number that is not finite is written as null.

    Args:
        path: metrics.jsonl.
        due: whether a line is to be written after a step.
        alarms: metrics -> what is wrong, in words; each alarm is said once on stderr.
        sinks: trackers that get the same lines.
        measure: more numbers about a step; asked for only where a line is written.
        found: what was found out after a step; where there is something, a line is written.
    """

    def __init__(
        self,
        path: Path,
        due: Callable[[int], bool],
        alarms: Alarms = lambda _: [],
        sinks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
        measure: Callable[[StepRecord], Mapping[str, float]] = lambda _: {},
        found: Callable[[int], Mapping[str, float]] = lambda _: {},
    ) -> None:
        self.path, self.due, self.alarms, self.sinks = path, due, alarms, sinks
        self.measure, self.found = measure, found
        self.said: set[str] = set()

    def __call__(self, state: TrainState, record: StepRecord) -> None:
        """Write where it is time."""
        found = self.found(record.step)
        if record.applied and not self.due(record.step) and not found:
            return
        numbers = record.terms | record.scheduled | {"gradient_norm": record.gradient_norm}
        numbers["scans_per_s"] = record.n_scans / record.seconds
        numbers["wait_share"] = record.waited_s / record.seconds
        numbers |= {**self.measure(record), **found}
        row: dict[str, Any] = {"step": record.step, "seen_scans": state.seen_scans}
        row["applied"] = record.applied
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if raised := self.alarms(record.terms):
            row["alarms"] = raised
            self._say(raised, record.step)
        append_jsonl(self.path, [row])
        for sink in self.sinks:
            sink(row)

    def _say(self, raised: list[str], step: int) -> None:
        for text in raised:
            kind = text.partition("(")[0]
            if kind not in self.said:
                self.said.add(kind)
                print(f"alarm at step {step}: {text}", file=sys.stderr)


class NonFiniteWriter:
    """Hook: which scans were in a step that was not applied.

    Args:
        path: nonfinite.jsonl.
        rank: of this process; each writes its own scans.
        names: micro-batch -> pseudonymous scan ids.
    """

    def __init__(self, path: Path, rank: int, names: Callable[[Any], list[str]]) -> None:
        self.path, self.rank, self.names = path, rank, names

    def __call__(self, _: TrainState, record: StepRecord) -> None:
        """Write where the step was not applied."""
        if record.applied:
            return
        scans = [name for batch in record.batches for name in self.names(batch)]
        row = {"step": record.step, "rank": self.rank, "scan_ids": scans}
        append_jsonl(self.path, [row], durable=True)


def show_progress(tracker: Tracker) -> Callable[[TrainState, StepRecord], None]:
    """Hook: scans done, scans per second, time left, step and loss."""

    def advance(_: TrainState, record: StepRecord) -> None:
        tracker.advance(record.n_scans, f"step {record.step}, loss {record.terms['loss']:.4f}")

    return advance


def trim_steps(path: Path, step: int) -> None:
    """Take out the lines after `step`, which a resumed run will write again."""
    if path.exists():
        rows = [row for row in read_jsonl(path) if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
