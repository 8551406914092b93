"""What happened before the evaluation: the account of ingest, and how pretraining went."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from headct.dicom.reasons import Reason, Status
from headct.errors import StoreError, UsageError
from headct.evaluate.theme import GRID, new_figure, styled, to_svg
from headct.ingest.summary import reason_counts
from headct.run import read_jsonl

Row = dict[str, Any]
ITEMS = "items.jsonl"
TITLES = ("Losses", "Guards: spread of CLS", "Guards: effective rank of CLS")
GUARDS = ("cls_std", "teacher_entropy", "target_entropy")
COLOURS = ("#2f7de1", "#e8912d", "#12a594", "#d6457b", "#8e5bd0", "#9aa1ab", "#5b9e3d", "#c8553d")


@dataclass(frozen=True)
class Account:
    """What ingest did with every input: seen = accepted + flagged + refused + skipped."""

    n_seen: int
    states: list[tuple[str, int]]
    reasons: list[tuple[str, str, int, str]]
    not_taken: list[Row]


def ingest_account(store: Path) -> Account:
    """Count the lines of items.jsonl.

    Raises:
        StoreError: the store has no items.jsonl, or one with an unknown state.
    """
    items = list(read_jsonl(store / ITEMS))
    if not items:
        raise StoreError(f"the store {store.name!r} has no {ITEMS}", remedy="ingest again")
    states = Counter(item["status"] for item in items)
    if set(states) - set(Status):
        raise StoreError(f"{ITEMS} holds states that do not exist", remedy="ingest again")
    left_out = [item for item in items if item["status"] in (Status.REFUSED, Status.SKIPPED)]
    left_out.sort(key=lambda item: (item["status"], item["reason"], item["source"]))
    meaning = {str(reason): reason.meaning for reason in Reason}
    shown = [item | {"meaning": item["message"] or meaning[item["reason"]]} for item in left_out]
    return Account(len(items), [(str(s), states[s]) for s in Status], reason_counts(items), shown)


@dataclass(frozen=True)
class Pretraining:
    """How a pretraining run went."""

    curves: Markup
    panel: str | None
    panel_step: int | None
    record: Row
    n_steps: int
    n_scans: int
    n_not_applied: int
    alarms: list[str]


def pretraining(run: Path) -> Pretraining:
    """Curves of losses and guards, and the last reconstruction panel.

    Raises:
        UsageError: the folder is no run, or has no metrics yet.
    """
    rows = list(read_jsonl(run / "metrics.jsonl"))
    if not rows or not (run / "run.json").is_file():
        raise UsageError(f"{run.name!r} is no run with metrics", remedy="give a folder of pretrain")
    panels = sorted((run / "panels").glob("step-*.png"))
    last = panels[-1] if panels else None
    return Pretraining(
        curves=_curves(rows),
        panel=data_uri(last.read_bytes()) if last else None,
        panel_step=int(last.stem.removeprefix("step-")) if last else None,
        record=json.loads((run / "run.json").read_text(encoding="utf-8")),
        n_steps=rows[-1]["step"],
        n_scans=rows[-1]["seen_scans"],
        n_not_applied=sum(not row.get("applied", True) for row in rows),
        alarms=_alarms(rows),
    )


def _alarms(rows: list[Row]) -> list[str]:
    """The first alarm of each kind and how often it was raised."""
    texts = [text for row in rows for text in row.get("alarms", [])]
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text.partition("(")[0], text)
    return [
        f"{text}, raised {sum(t.startswith(kind) for t in texts)} times"
        for kind, text in first.items()
    ]


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _curves(rows: list[Row]) -> Markup:
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in names if name == "loss" or name.endswith(("_loss", "_error"))]
    guards = [name for name in names if name in GUARDS]
    with styled():
        figure, axes = new_figure(2.9, 3, share_y=False)
        for axis, shown, title in zip(
            axes, (losses, guards, ["effective_rank"]), TITLES, strict=True
        ):
            _lines(axis, rows, shown)
            axis.set(title=title, xlabel="step")
            axis.grid(axis="y")
    return to_svg(figure, "Pretraining: losses and collapse guards by step")


def _lines(axis: Axes, rows: list[Row], names: list[str]) -> None:
    for number, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            steps, values = np.array(points, dtype=float).T
            tint = COLOURS[number % len(COLOURS)]
            axis.plot(steps, values, color=tint, linewidth=0.6, alpha=0.35)
            axis.plot(steps, _smooth(values), color=tint, linewidth=1.6, label=name)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7.5)
    else:
        axis.text(0.5, 0.5, "not logged", color=GRID, ha="center", transform=axis.transAxes)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the run; ends are averaged over what is there."""
    width = max(1, len(values) // 20)
    kernel = np.ones(width)
    counts = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.asarray(np.convolve(values, kernel, mode="same") / counts)
