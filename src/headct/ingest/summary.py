"""STORE/summary.html: one self-contained page about an archive, and the same counts as text."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from headct.atomic import write_text
from headct.dicom.reasons import Status
from headct.ingest.criteria import REASONS, Criteria
from headct.run import read_jsonl
from headct.store.layout import ITEMS
from headct.store.store import Store, open_store

SUMMARY = "summary.html"
MM_EDGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, np.inf)
AGE_EDGES = (0, 18, 30, 40, 50, 60, 70, 80, 90, np.inf)

Bars = list[tuple[str, int]]


def write_summary(folder: Path, criteria: Criteria) -> None:
    """Write summary.html: states, reasons, scanners, slice steps and ages."""
    template = resources.files("headct.ingest").joinpath("summary.html.j2").read_text("utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    values = _values(open_store(folder), list(read_jsonl(folder / ITEMS)))
    rules = {"refuse": criteria.refuse, "flag": criteria.flag, "accept": criteria.accept}
    write_text(folder / SUMMARY, page.from_string(template).render(**values, rules=rules))


def _values(store: Store, items: list[dict[str, Any]]) -> dict[str, Any]:
    manifest = store.manifest
    states = Counter(item["status"] for item in items)
    steps = [spacing[0] for spacing in manifest["spacing_mm_zyx"].to_pylist() if spacing]
    return {
        "n_seen": len(items),
        "states": [(str(status), states[status]) for status in Status],
        "reasons": reason_counts(items),
        "n_patients": len(set(manifest["patient_id"].to_pylist())),
        "n_scans": len(store),
        "preprocessing": store.preprocessing,
        "charts": [
            ("Scanners", _counts(store, "manufacturer", "model")),
            ("Kernels", _counts(store, "kernel")),
            ("Tube voltage, kV", _counts(store, "kvp")),
            ("Slice step, mm", _histogram(steps, MM_EDGES)),
            ("Age, years", _histogram(manifest["age_years"].to_pylist(), AGE_EDGES)),
        ],
    }


def reason_counts(items: list[dict[str, Any]]) -> list[tuple[str, str, int, str]]:
    """(status, reason, number, meaning), flagged ones by each of their flags; most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        for reason in item["flags"] or [item["reason"]]:
            if reason is not None:
                counts[item["status"], reason] += 1
    return [
        (status, reason, n, REASONS[reason].meaning)
        for (status, reason), n in sorted(counts.items(), key=lambda e: (e[0][0], -e[1], e[0][1]))
    ]


def _counts(store: Store, *columns: str) -> Bars:
    values = zip(*(store.manifest[column].to_pylist() for column in columns), strict=True)
    names = (" ".join(_shown(v) for v in row if v is not None) or "not said" for row in values)
    return Counter(names).most_common(20)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _histogram(values: list[float | None], edges: tuple[float, ...]) -> Bars:
    known = [v for v in values if v is not None]
    counts, _ = np.histogram(known, bins=np.asarray(edges))
    names = [f"{a:g} to {b:g}" for a, b in pairwise(edges[:-1])]
    bars = [(name, int(n)) for name, n in zip([*names, f"{edges[-2]:g} +"], counts, strict=True)]
    return bars + ([("not said", len(values) - len(known))] if len(known) < len(values) else [])
