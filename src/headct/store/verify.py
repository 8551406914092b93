"""Is every scan of a store readable and unchanged? Nothing is repaired here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headct.errors import StoreError
from headct.run import read_jsonl
from headct.store.layout import ITEMS
from headct.store.store import Store
from headct.store.writer import ACCEPTED


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: which scan (empty for the store itself), and what."""

    scan_id: str
    message: str


def verify_scans(store: Store) -> Iterator[Problem | None]:
    """Read every scan and compare it with its SHA-256; one answer per scan, in order."""
    for row, scan_id in enumerate(store.scan_ids):
        try:
            store.read_hu([row])
        except StoreError as error:
            yield Problem(scan_id, error.message)
        else:
            yield None


def verify_index(store: Store) -> list[Problem]:
    """Compare manifest, item lines and preprocessing with each other."""
    problems = []
    if len(set(store.scan_ids)) != len(store):
        problems.append(Problem("", "a scan is in the manifest twice"))
    if store.manifest["row"].to_pylist() != list(range(len(store))):
        problems.append(Problem("", "the rows of the manifest do not follow the array"))
    taken = {i["scan_id"] for i in read_jsonl(store.path / ITEMS) if i["status"] in ACCEPTED}
    lines = sorted(taken - set(store.scan_ids))
    problems += [Problem(scan_id, "in items.jsonl, but not in the store") for scan_id in lines]
    return problems
