"""Findings per scan: a label table joined to the scans of a store, by patient-level split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.run import read_jsonl
from headct.store.label_table import (
    Rows,
    at_lines,
    finding_columns,
    finding_values,
    read_table,
    text_column,
)
from headct.store.splits import SPLITS, draw_splits, group_scans, require_disjoint

KEYS = ("scan_id", "series_id", "study_id", "study_uid", "patient_id")
RAW_KEYS = ("study_uid", "patient_id")
ABOUT_SCAN = (*KEYS, "series_uid", "site", "split", "age_years", "sex")
"""Columns that are not findings."""


@dataclass(frozen=True)
class Labels:
    """What is known about labelled scans; all arrays run over the same n scans."""

    findings: tuple[str, ...]
    values: np.ndarray
    """int8 [n f]: 1 present, 0 absent, -1 unknown ("not mentioned" is not "absent")."""
    scan_id: np.ndarray
    row: np.ndarray
    """Row of each scan in the store."""
    patient_id: np.ndarray
    """One name for all scans that share a patient (of store or table), a study or an image."""
    study_id: np.ndarray
    site: np.ndarray
    split: np.ndarray
    """train, tune or test."""
    notes: tuple[str, ...] = field(default=())
    """What a person should know: rows left out, splits drawn, patients not named."""

    def __len__(self) -> int:
        return len(self.scan_id)

    def positions(self, split: str) -> np.ndarray:
        """Positions of the scans of one split."""
        return np.flatnonzero(self.split == split)

    def take(self, positions: np.ndarray) -> Labels:
        """The labels of some of the scans, in the order given."""
        arrays = ("values", "scan_id", "row", "patient_id", "study_id", "site", "split")
        return replace(self, **{name: getattr(self, name)[positions] for name in arrays})


def read_labels(
    path: Path,
    manifest: pa.Table,
    key: bytes | None = None,
    *,
    findings: Sequence[str] | None = None,
    refused: frozenset[str] = frozenset(),
    allow_missing: bool = False,
    seed: int = 0,
) -> Labels:
    """Read a label table and join it to the scans of a store.

    The table is CSV or Parquet with a row per scan, series, study or patient, named by `scan_id`,
    `series_id`, `study_id`, `study_uid` or `patient_id`; a column not about the scan is a finding
    with 1, 0 or nothing (unknown). A study with several scans gives its labels to each.
    Without a column `split`, train / tune / test are drawn by patient.

    Args:
        path: the table.
        manifest: of the store: scan_id, patient_id, study_id, row, hu_sha256, and site.
        key: the secret that made the store's pseudonyms; needed for `study_uid` and `patient_id`.
        findings: only these columns; None takes all.
        refused: scan and study ids that ingest refused: rows about them are left out and counted.
        allow_missing: leave out rows about scans that the store never saw, too.
        seed: of the drawn split.

    Raises:
        LabelError: unknown scans, values other than 1/0/empty, a finding that is all one value,
            doubled rows, one patient or one image in two splits, one image with two labels.
            Messages name lines and columns, never values.
    """
    header, rows = read_table(path)
    key_column = _key_column(header, rows)
    ids = _pseudonyms(rows, key_column, key)
    _require_once(ids, key_column)
    scans = _Scans(manifest)
    matches = [scans.rows_of(key_column, name) for name in ids]
    notes = _require_known(matches, ids, refused, allow_missing)
    names = finding_columns(header, ABOUT_SCAN, findings)
    values = finding_values(rows, names)
    line = np.repeat(np.arange(len(rows)), [len(found) for found in matches])
    row = np.array([r for found in matches for r in found], dtype=np.int64)
    labels = Labels(
        findings=names,
        values=values[line],
        scan_id=scans.scan_id[row],
        row=scans.store_row[row],
        patient_id=scans.patient_id[row],
        study_id=scans.study_id[row],
        site=_or_else(text_column(rows, "site")[line], scans.site[row]),
        split=text_column(rows, "split")[line],
    )
    _require_both_classes(labels)
    _require_one_truth(labels, scans.sha256[row])
    unlabelled = manifest.num_rows - len(np.unique(row))
    if unlabelled:
        notes.append(f"{unlabelled} scans of the store have no label")
    named = text_column(rows, "patient_id")[line]
    groups, more_notes = group_scans(labels.patient_id, labels.study_id, named, scans.sha256[row])
    labels = replace(labels, patient_id=groups.names)
    if "split" in header:
        _require_split_names(rows)
        require_disjoint(labels.split, groups)
    else:
        labels = replace(labels, split=draw_splits(groups.index, seed))
        more_notes.append(f"no column split: drawn by patient with seed {seed}")
    return replace(labels, notes=(*notes, *more_notes))


def needs_key(path: Path) -> bool:
    """Whether scans are named by identifiers that only the site's key turns into pseudonyms."""
    return _key_column(*read_table(path)) in RAW_KEYS


def refused_ids(items: Path) -> frozenset[str]:
    """Scan, study and series ids of what ingest saw and did not take, from `items.jsonl`."""
    names = ("scan_id", "study", "study_id", "series", "series_id")
    rows = (row for row in read_jsonl(items) if row["status"] in ("refused", "skipped"))
    return frozenset(str(row[name]) for row in rows for name in names if row.get(name))


class _Scans:
    """The manifest's columns that labels need, and its rows by scan, study and patient."""

    def __init__(self, manifest: pa.Table) -> None:
        n = manifest.num_rows
        self.scan_id = _texts(manifest, "scan_id")
        self.series_id = _texts(manifest, "series_id")
        self.study_id = _texts(manifest, "study_id")
        self.patient_id = _texts(manifest, "patient_id")
        self.sha256 = _texts(manifest, "hu_sha256")
        self.site = _texts(manifest, "site")
        has_row = "row" in manifest.column_names
        self.store_row = manifest["row"].to_numpy() if has_row else np.arange(n)
        self.by_column = {name: _index(getattr(self, name)) for name in KEYS if hasattr(self, name)}

    def rows_of(self, column: str, name: str) -> list[int]:
        return self.by_column["study_id" if column == "study_uid" else column].get(name, [])


def _texts(table: pa.Table, column: str) -> np.ndarray:
    if column not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    return np.array([value or "" for value in table[column].to_pylist()], dtype=object)


def _index(names: np.ndarray) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(row)
    return rows


def _key_column(header: list[str], rows: Rows) -> str:
    found = [name for name in KEYS if name in header and any(row[name] for row in rows)]
    if not found:
        raise LabelError(
            "the label table does not say which scan a row is about",
            remedy=f"give it one of the columns {', '.join(KEYS)}",
        )
    blank = [line for line, row in enumerate(rows, 2) if not row[found[0]]]
    if blank:
        raise LabelError(
            at_lines(blank, "row", f"without {found[0]}"),
            remedy="fill it in",
        )
    return found[0]


def _pseudonyms(rows: Rows, column: str, key: bytes | None) -> list[str]:
    names = [row[column] for row in rows]
    if column not in RAW_KEYS:
        return names
    if key is None:
        raise LabelError(
            f"the table names scans by {column}, the store by pseudonyms",
            remedy="give the key file that ingest used (--key)",
        )
    pseudonymizer = Pseudonymizer(key)
    if column == "study_uid":
        return [pseudonymizer.study_id(name) for name in names]
    return [pseudonymizer.patient_id(patient_key(name)) for name in names]


def _require_once(ids: list[str], column: str) -> None:
    first = {name: line for line, name in reversed(list(enumerate(ids, 2)))}
    doubled = [line for line, name in enumerate(ids, 2) if first[name] != line]
    if doubled:
        raise LabelError(
            at_lines(doubled, "row", f"with a {column} that an earlier row has"),
            remedy="keep one row each; labels that disagree must be settled first",
        )


def _require_known(
    matches: list[list[int]], ids: list[str], refused: frozenset[str], allow_missing: bool
) -> list[str]:
    """Notes on rows that are left out; raises where too many, or scans nobody has seen."""
    missing = [n for n, found in enumerate(matches) if not found]
    unseen = [n + 2 for n in missing if ids[n] not in refused]
    if len(missing) * 2 > len(matches):
        raise LabelError(
            f"{len(missing)} of {len(matches)} rows are about no scan of the store",
            remedy="give the store, and the key file (--key), that belong to this table",
        )
    if unseen and not allow_missing:
        raise LabelError(
            at_lines(unseen, "row", "about scans that ingest neither took nor refused"),
            remedy="correct these rows, ingest these scans, or pass --allow-missing",
        )
    n_refused = len(missing) - len(unseen)
    notes = [f"{n_refused} rows left out: ingest refused their scans"] if n_refused else []
    return notes + ([f"{len(unseen)} rows left out: not in the store"] if unseen else [])


def _require_both_classes(labels: Labels) -> None:
    counts = {
        name: (int((column == 1).sum()), int((column == 0).sum()))
        for name, column in zip(labels.findings, labels.values.T, strict=True)
    }
    single = [f"{name} ({p} present, {a} absent)" for name, (p, a) in counts.items() if not p * a]
    if single:
        raise LabelError(
            f"only one class known of {', '.join(single)}",
            remedy="a finding needs scans with and without it: add labels or drop the column",
        )


def _require_one_truth(labels: Labels, sha256: np.ndarray) -> None:
    """The same image under two names may not have a finding under one and not under the other."""
    for name, column in zip(labels.findings, labels.values.T, strict=True):
        with_it, without = (set(sha256[column == value]) - {""} for value in (1, 0))
        disputed = len(with_it & without)
        if disputed:
            raise LabelError(
                f"{disputed} image{'s' if disputed > 1 else ''} under two names, with {name} under"
                " one and without it under the other",
                remedy="the voxels are equal: keep the label that is right, or make both unknown",
            )


def _require_split_names(rows: Rows) -> None:
    bad = [line for line, row in enumerate(rows, 2) if row["split"] not in SPLITS]
    if bad:
        raise LabelError(
            at_lines(bad, "row", f"with a split other than {', '.join(SPLITS)}"),
            remedy="correct them, or leave out the column: then the split is drawn by patient",
        )


def _or_else(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.where(values == "", others, values)
