"""A few test scans with what the method looked at: successes and failures, by a fixed rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headct.adapt.task import BUNDLE, PREDICTIONS, Task, load_task
from headct.errors import HeadctError, MismatchError
from headct.evaluate.attention import (
    attention_volume,
    gradient_attention_volume,
    head_of,
    montage,
)
from headct.evaluate.history import data_uri
from headct.model.bundle import load_bundle
from headct.model.embed import Bundle
from headct.progress import track
from headct.store.store import Store

Row = dict[str, Any]
RULE = (
    "Per site: the scan with the highest score among those that have the finding and were called, "
    "and the one with the lowest score among those that have a finding and were missed."
)


@dataclass(frozen=True)
class Panel:
    """One scan and finding; `picture` is a PNG data URI: slices, attention, gradient-weighted."""

    scan_id: str
    site: str
    finding: str
    y_true: int
    y_score: float
    threshold: float | None
    picture: str

    @property
    def outcome(self) -> str:
        """Called or not, right or not."""
        called = self.threshold is not None and self.y_score >= self.threshold
        names = {(1, True): "found", (1, False): "missed", (0, True): "false alarm"}
        return names.get((self.y_true, called), "correctly not called")


def gallery(
    store: Store, task_folder: Path, bundle_folder: Path | None, n_findings: int = 2
) -> list[Panel]:
    """Panels of a task that has an encoder; see RULE for which scans.

    Raises:
        MismatchError: store, task and bundle do not belong together.
        HeadctError: the task has no encoder to look into.
    """
    task = load_task(task_folder)
    task.info.preprocessing.require_same(store.preprocessing, "the task", "the store")
    bundle = encoder_of(task, bundle_folder)
    chosen = choose(task, n_findings)
    return [_panel(store, task, bundle, row) for row in track(chosen, "attention", len(chosen))]


def encoder_of(task: Task, folder: Path | None) -> Bundle:
    """The encoder that a task reads: its own, or the bundle that it was fitted on.

    Raises:
        HeadctError: there is none.
        MismatchError: another bundle than the task was fitted on.
    """
    own = task.folder / BUNDLE
    if own.is_dir():
        return load_bundle(own)
    if folder is None or task.info.source != "encoder":
        raise HeadctError(
            "the task has no encoder to look into",
            remedy="give --bundle, or a task made by finetune or by a probe on an encoder",
            code="no-encoder",
        )
    bundle = load_bundle(folder)
    if bundle.hash != task.info.bundle_hash:
        raise MismatchError(
            f"the task was made with bundle {task.info.bundle_hash}, not {bundle.hash}",
            remedy="give the bundle that the task names in task.json",
        )
    return bundle


def choose(task: Task, n_findings: int) -> list[Row]:
    """Rows of the predictions by RULE; each scan and each finding at most once per site."""
    table = pq.read_table(task.folder / PREDICTIONS)
    rows = table.filter((pc.field("split") == "test") & (pc.field("y_true") == 1)).to_pylist()
    chosen: list[Row] = []
    for site in sorted({row["site"] for row in rows}):
        here = [row for row in rows if row["site"] == site]
        found = [row for row in here if _called(task, row)]
        missed = [row for row in here if not _called(task, row)]
        by_score = sorted(found, key=lambda row: (-row["y_score"], row["scan_id"]))
        chosen += _distinct(by_score, n_findings)
        chosen += sorted(missed, key=lambda row: (row["y_score"], row["scan_id"]))[:1]
    return chosen


def _called(task: Task, row: Row) -> bool:
    threshold = task.info.thresholds.get(row["finding"])
    return threshold is not None and row["y_score"] >= threshold


def _distinct(rows: Sequence[Row], n: int) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        if len(kept) < n and all(
            row["finding"] != other["finding"] and row["scan_id"] != other["scan_id"]
            for other in kept
        ):
            kept.append(row)
    return kept


def _panel(store: Store, task: Task, bundle: Bundle, row: Row) -> Panel:
    volume = store[row["scan_id"]]
    plain = attention_volume(bundle, volume)
    weighted = gradient_attention_volume(
        bundle, head_of(task), task.info.findings.index(row["finding"]), volume
    )
    heats = [np.asarray(heat.hu) for heat in (plain, weighted)]
    return Panel(
        scan_id=row["scan_id"],
        site=row["site"],
        finding=row["finding"],
        y_true=row["y_true"],
        y_score=row["y_score"],
        threshold=task.info.thresholds.get(row["finding"]),
        picture=data_uri(montage(volume.hu, heats, volume.spacing_mm_zyx)),
    )
