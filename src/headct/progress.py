"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
PLAIN_LINE_EVERY_S = 10.0


class Tracker:
    """Counts done items; `advance(n, note)` is all that a stage needs to call."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.started = time.monotonic()

    def advance(self, n: int = 1, note: str = "") -> None:  # noqa: ARG002
        """Count `n` more items as done; `note` is shown beside the count."""
        self.done += n

    @property
    def rate(self) -> float:
        """Items per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)


class _BarTracker(Tracker):
    def __init__(self, name: str, total: int | None, unit: str, progress: Progress) -> None:
        super().__init__(name, total, unit)
        self.progress = progress
        self.task = progress.add_task(name, total=total, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        super().advance(n, note)
        text = f"{self.rate:.1f} {self.unit}/s {note}"
        self.progress.update(self.task, completed=self.done, note=text)


class _LineTracker(Tracker):
    last_line = 0.0

    def advance(self, n: int = 1, note: str = "") -> None:
        super().advance(n, note)
        now = time.monotonic()
        if now - max(self.last_line, self.started) < PLAIN_LINE_EVERY_S:
            return
        self.last_line = now
        self.line(note)

    def line(self, note: str = "") -> None:
        of_total, left = "", ""
        if self.total:
            of_total = f"/{self.total}"
            left = f", {_duration((self.total - self.done) / max(self.rate, 1e-9))} left"
        note = f", {note}" if note else ""
        text = f"{self.name}: {self.done}{of_total} {self.unit}, {self.rate:.1f}/s{left}{note}"
        print(text, file=sys.stderr, flush=True)


@contextmanager
def tracking(name: str, total: int | None = None, unit: str = "scans") -> Iterator[Tracker]:
    """Show progress of a stage while the block runs.

    On a terminal a bar; elsewhere a plain line every ten seconds and one at the end, on stderr.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        tracker = _LineTracker(name, total, unit)
        yield tracker
        seconds = time.monotonic() - tracker.started
        print(f"{name}: {tracker.done} {unit} in {_duration(seconds)}", file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _BarTracker(name, total, unit, progress)


def track(
    items: Iterable[T], name: str, total: int | None = None, unit: str = "scans"
) -> Iterator[T]:
    """The items, with progress shown as they are taken."""
    with tracking(name, total, unit) as tracker:
        for item in items:
            yield item
            tracker.advance()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
