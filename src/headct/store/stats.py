"""A store in numbers."""

from __future__ import annotations

from collections import Counter

from headct.run import read_jsonl
from headct.store.layout import ARRAY, ITEMS
from headct.store.store import Store


def describe(store: Store) -> dict[str, str]:
    """Name -> value, in the order to print: scans, grid, size, items by state and reason."""
    size = sum(p.stat().st_size for p in (store.path / ARRAY).rglob("*") if p.is_file())
    items = list(read_jsonl(store.path / ITEMS))
    states = Counter((item["status"], item["reason"] or "") for item in items)
    grid = store.preprocessing
    described = {
        "scans": str(len(store)),
        "patients": str(len(set(store.manifest["patient_id"].to_pylist()))),
        "grid (z, y, x)": " x ".join(map(str, grid.shape_zyx)),
        "spacing, mm (z, y, x)": " x ".join(f"{mm:g}" for mm in grid.spacing_mm_zyx),
        "preprocessing": grid.hash,
        "size, MB": f"{size / 1e6:.1f}",
        "MB per scan": f"{size / 1e6 / max(len(store), 1):.2f}",
        "seen": str(len(items)),
    }
    return described | {
        f"{status} {why}".strip(): str(n) for (status, why), n in sorted(states.items())
    }
