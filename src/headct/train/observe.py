"""The hooks of a run: what it writes and shows while it trains; none changes what it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from headct.objective.guards import alarms
from headct.objective.joint import JointObjective
from headct.progress import tracking
from headct.train.events import Events, UnreadableScans
from headct.train.feed import Feed, PretrainBatch
from headct.train.hooks import MetricsWriter, NonFiniteWriter, show_progress
from headct.train.loop import Hook
from headct.train.panel import PanelWriter
from headct.train.recipe import PretrainRecipe
from headct.train.runtime import Runtime
from headct.train.speed import Peak, Speedometer
from headct.train.trackers import open_trackers
from headct.train.watch import LabelledSubset, OnlineProbe

PANEL_SCANS = 4


@dataclass(frozen=True, eq=False)
class Observed:
    """What the hooks look at.

    Attributes:
        recipe: of the run.
        folder: RUN.
        runtime: of this rank.
        feed: gives the views of the panels.
        scan_ids: pseudonymous names by row of the store.
        events: of the run.
        objective: all weights, on the main rank; every rank must ask for it together.
        peak: of the device.
        watch: labelled scans, where there are some.
    """

    recipe: PretrainRecipe
    folder: Path
    runtime: Runtime
    feed: Feed
    scan_ids: Sequence[str]
    events: Events
    objective: Callable[[], JointObjective | None]
    peak: Peak
    watch: LabelledSubset | None

    @contextmanager
    def hooks(self, first_step: int) -> Iterator[list[Hook]]:
        """In the order in which they must be called, while the block runs."""
        recipe, record = self.recipe, self.recipe.record
        hooks: list[Hook] = [
            UnreadableScans(self.scan_ids, self.feed.loader.max_unreadable, self.events),
            NonFiniteWriter(self.folder / "nonfinite.jsonl", self.runtime.rank, self._names),
            PanelWriter(
                self.folder / "panels",
                self.objective,
                self.feed.first_views(PANEL_SCANS),
                record.panel_every,
            ),
        ]
        probe = None
        if self.watch is not None:
            dtype = self.runtime.dtype
            probe = OnlineProbe(self.watch, self.objective, record.probe_every, dtype)
            hooks.append(probe)
        with ExitStack() as stack:
            if self.runtime.is_main:
                metrics = MetricsWriter(
                    self.folder / "metrics.jsonl",
                    record.writes,
                    alarms,
                    stack.enter_context(
                        open_trackers(record.trackers, self.folder, recipe, first_step)
                    ),
                    Speedometer(recipe, self.runtime, self.peak, first_step),
                    probe.found if probe is not None else lambda _: {},
                )
                left = (recipe.steps - first_step) * recipe.batch
                tracker = stack.enter_context(tracking(f"pretrain {recipe.name}", left))
                hooks += [metrics, show_progress(tracker)]
            yield hooks

    def _names(self, batch: PretrainBatch) -> list[str]:
        return [self.scan_ids[row] for row in batch.scans.rows]
