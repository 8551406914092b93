"""Labels of series and studies -> labels of the scans of a store, with counts of what is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from headct.errors import LabelError
from headct.labels.table import Labelled, once_each
from headct.store.splits import group_scans


def to_scans(
    tables: Sequence[Labelled], manifest: pa.Table, refused: frozenset[str]
) -> list[Labelled]:
    """Tables with one row per scan of the store that they label.

    Scans that share a patient (by the tables or the store), a study or their voxels get one
    patient name in all tables, so that no split parts them.

    Args:
        tables: by scan, series or study.
        manifest: of the store.
        refused: ids that ingest did not take, to say why labels have no scan.

    Raises:
        LabelError: a table with no row about a scan of the store, or with two labels for one.
    """
    ids = manifest["scan_id"].to_pylist()
    found = [_places(table, manifest) for table in tables]
    patients, notes = _patients(tables, found, manifest)
    made, labelled = [], set()
    for table, places in zip(tables, found, strict=True):
        rows = [
            replace(row, name=ids[place], patient_id=patients[place])
            for row, at in zip(table.rows, places, strict=True)
            for place in at
        ]
        once, more = once_each(rows)
        labelled |= {row.name for row in once}
        lost = [row.name for row, at in zip(table.rows, places, strict=True) if not at]
        n_refused = sum(name in refused for name in lost)
        if n_refused:
            more.append(f"{n_refused} labels have no scan: ingest refused it")
        if len(lost) > n_refused:
            more.append(f"{len(lost) - n_refused} labels have no scan in the store")
        made.append(Labelled("scan_id", once, table.n_read, [*table.notes, *more]))
    if len(ids) > len(labelled):
        notes.append(f"{len(ids) - len(labelled)} scans of the store have no label")
    made[-1].notes.extend(notes)
    return made


def _places(table: Labelled, manifest: pa.Table) -> list[list[int]]:
    """Rows of the manifest for each row of a table."""
    index: dict[str, list[int]] = {}
    for place, name in enumerate(manifest[table.key].to_pylist()):
        index.setdefault(name, []).append(place)
    places = [index.get(row.name, []) for row in table.rows]
    if not any(places):
        raise LabelError(
            "none of the labels is about a scan of the store",
            remedy="give the store, and the key file (--key), that belong to these labels",
        )
    return places


def _patients(
    tables: Sequence[Labelled], found: Sequence[list[list[int]]], manifest: pa.Table
) -> tuple[dict[int, str], list[str]]:
    """One patient name for each labelled row of the manifest, and notes on it."""
    pairs = [
        (place, row.patient_id)
        for table, places in zip(tables, found, strict=True)
        for row, at in zip(table.rows, places, strict=True)
        for place in at
    ]
    at = np.array([place for place, _ in pairs])
    patient_id, study_id, sha256 = (
        np.array(manifest[name].to_pylist(), dtype=object)[at]
        for name in ("patient_id", "study_id", "hu_sha256")
    )
    named = np.where([not name for _, name in pairs], patient_id, [name for _, name in pairs])
    numbers = group_scans(patient_id, study_id, named, sha256)[0].index.tolist()
    first: dict[int, str] = {}
    for number, name in zip(numbers, named.tolist(), strict=True):
        first[number] = min(name, first.get(number, name))
    patients = {place: first[n] for (place, _), n in zip(pairs, numbers, strict=True)}
    images = manifest["hu_sha256"].take(pa.array(sorted(patients))).to_pylist()
    n_same = len(images) - len(set(images))
    notes = [f"{n_same} scans hold the same image as another: one split"] if n_same else []
    return patients, notes
