"""TASK... -> what is scored: predictions of several tasks on the same scans, checked.

Nothing is dropped here in silence: a missing or impossible score, a case counted twice, a patient
in two splits or two truths for one scan stop the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headct.adapt.predictions import SCHEMA
from headct.adapt.task import PREDICTIONS, RETRIEVAL, TaskInfo, load_task
from headct.errors import CheckpointError, HeadctError, LabelError, MismatchError
from headct.evaluate.metrics import Floats
from headct.evaluate.one_start import require_one_start

UNKNOWN = -1
COLUMNS = (
    *("scan_id", "patient_id", "site", "split", "finding", "y_true", "y_score"),
    *("method", "k", "seed", "n_train", "bundle_hash", "preprocessing_hash"),
)


@dataclass(frozen=True, order=True)
class RunKey:
    """One set of scores: a method, few-shot K (0: none), train scans (2 K), seed or draw."""

    method: str
    k: int
    n_train: int
    seed: int


Thresholds = dict[RunKey, dict[str, tuple[float | None, float | None]]]
"""By run and finding: score from which it is called, and score below which it is unlikely."""


@dataclass(frozen=True)
class SiteScores:
    """Test scans of one site; rows are scans, columns findings.

    Attributes:
        site: its name.
        internal: whether methods were trained on other patients of this site.
        scan_ids: [n].
        patient_of: [n] patient index, 0..n_patients-1.
        y_true: [n f] 1, 0 or -1 (unknown).
        scores: per run [n f]; NaN in the whole column of a finding that a run does not know.
    """

    site: str
    internal: bool
    scan_ids: tuple[str, ...]
    patient_of: NDArray[np.int64]
    y_true: NDArray[np.int8]
    scores: dict[RunKey, Floats]


@dataclass(frozen=True)
class Collection:
    """All that an evaluation reads.

    Attributes:
        findings: columns of all arrays.
        sites: internal ones first.
        tasks: task.json of each task, in the order given.
        task_of: of which of these each run is.
        thresholds: scores that rule in and out, by run and finding; None: not known.
        retrieval: rows of the runs of kNN tasks.
    """

    findings: tuple[str, ...]
    sites: tuple[SiteScores, ...]
    tasks: tuple[TaskInfo, ...]
    task_of: dict[RunKey, TaskInfo]
    thresholds: Thresholds
    retrieval: dict[RunKey, list[dict[str, Any]]]

    @property
    def runs(self) -> list[RunKey]:
        """All runs, sorted."""
        return sorted(self.thresholds)


def collect(tasks: Sequence[Path]) -> Collection:
    """Read the predictions of tasks and line them up on the same scans.

    Raises:
        HeadctError: code `predictions`: missing, impossible, doubled or unequal predictions.
        LabelError: a patient in two splits, or two truths for one scan.
        MismatchError: predictions that are not those of the task, or of two preprocessings; two
            encoders under one default name.
        CheckpointError: a folder that is no task.
    """
    infos = tuple(_info(folder) for folder in tasks)
    require_one_start(infos)
    tables = [_read(n, folder, infos[n]) for n, folder in enumerate(tasks)]
    table = pa.concat_tables(tables)
    _require_one_story(table)
    internal = set(table.filter(pc.not_equal(table["split"], "test"))["site"].unique().to_pylist())
    internal |= {site for info in infos for site in info.train_sites}
    test = table.filter(pc.equal(table["split"], "test"))
    for number in sorted(set(range(len(tasks))) - set(test["task"].unique().to_pylist())):
        name = tasks[number].name
        raise _fault(f"the task {name!r} scored no test scans", "put some patients in split test")
    runs, run_of = _runs(test, infos)
    findings = tuple(dict.fromkeys(name for info in infos for name in info.findings))
    sites, site_of = _codes(test["site"])
    parts = [
        _site(
            site, site in internal, test.filter(site_of == n), findings, runs, run_of[site_of == n]
        )
        for n, site in enumerate(sites)
    ]
    parts.sort(key=lambda part: (not part.internal, part.site))
    thresholds = {run: _thresholds(infos[task]) for run, task in runs.items()}
    files = {run: tasks[task] / RETRIEVAL for run, task in runs.items()}
    retrieval = {r: pq.read_table(f).to_pylist() for r, f in files.items() if f.is_file()}
    task_of = {run: infos[task] for run, task in runs.items()}
    return Collection(findings, tuple(parts), infos, task_of, thresholds, retrieval)


def _thresholds(info: TaskInfo) -> dict[str, tuple[float | None, float | None]]:
    out = info.rule_out_thresholds
    return {name: (value, out.get(name)) for name, value in info.thresholds.items()}


def _info(folder: Path) -> TaskInfo:
    if folder.is_file():
        raise CheckpointError(f"{folder.name!r} is a file, not a task", remedy="give task folders")
    return load_task(folder).info


def _read(number: int, folder: Path, info: TaskInfo) -> pa.Table:
    name = folder.name
    try:
        table = pq.read_table(folder / PREDICTIONS)
    except (OSError, pa.ArrowInvalid) as error:
        raise _fault(f"the task {name!r} has no readable {PREDICTIONS}", "make it again") from error
    absent = [column for column in COLUMNS if column not in table.column_names]
    if absent:
        raise _fault(f"predictions of {name!r} lack {', '.join(absent)}", "make the task again")
    table = _typed(table.select(COLUMNS), name)
    for column in set(COLUMNS) - {"k"}:
        if table[column].null_count:
            raise _fault(
                f"{table[column].null_count} rows of {name!r} have no {column}",
                "score these scans, or leave them out of the labels of every task",
            )
    _require_values(table, name)
    if {info.method} != set(table["method"].unique().to_pylist()):
        raise MismatchError(
            f"predictions of {name!r} are of another method", remedy="make it again"
        )
    if {info.preprocessing.hash} != set(table["preprocessing_hash"].unique().to_pylist()):
        raise MismatchError(
            f"predictions of {name!r} are of another preprocessing than its task.json",
            remedy="make the task again",
        )
    return table.append_column("task", pa.array(np.full(table.num_rows, number)))


def _typed(table: pa.Table, name: str) -> pa.Table:
    schema = pa.schema([(column, SCHEMA.field(column).type) for column in COLUMNS])
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _fault(
            f"predictions of {name!r} have columns of other types", "make the task again"
        ) from error


def _require_values(table: pa.Table, name: str) -> None:
    score = table["y_score"].to_numpy()
    bad = int((~((score >= 0) & (score <= 1))).sum())
    if bad:
        raise _fault(
            f"{bad} scores of {name!r} are NaN or outside 0..1",
            "a scan without a score is not a negative: find out why the method gave none",
        )
    truth = set(table["y_true"].unique().to_pylist())
    if not truth <= {0, 1}:
        raise LabelError(f"truths of {name!r} are not all 0 or 1", remedy="correct the labels")


def _require_one_story(table: pa.Table) -> None:
    pairs = table.group_by(["patient_id", "split"]).aggregate([])
    doubled = pairs.num_rows - len(pc.unique(pairs["patient_id"]))
    if doubled:
        raise LabelError(
            f"{doubled} patients are in two splits", remedy="split by patient, the same for all"
        )
    for column in ("patient_id", "site", "split"):
        pairs = table.group_by(["scan_id", column]).aggregate([])
        if pairs.num_rows > len(pc.unique(pairs["scan_id"])):
            raise LabelError(
                f"tasks disagree on the {column} of a scan",
                remedy="make all tasks from one label table and one store",
            )


def _runs(
    table: pa.Table, infos: Sequence[TaskInfo]
) -> tuple[dict[RunKey, int], NDArray[np.int64]]:
    """The task of each run, and for each row the position of its run."""
    ids = ["task", "method", "k", "seed"]
    table = table.set_column(table.column_names.index("k"), "k", pc.fill_null(table["k"], 0))
    groups = table.group_by(ids).aggregate([("n_train", "max")]).to_pylist()
    runs: dict[RunKey, int] = {}
    position: dict[tuple[int, int, int], int] = {}
    for group in groups:
        # known labels differ between findings and draws; the scans say which seeds belong together
        n_train = group["n_train_max"] if group["k"] else infos[group["task"]].n_scans
        key = RunKey(group["method"], group["k"], n_train, group["seed"])
        if key in runs:
            raise _fault(
                f"two tasks hold the same run: {key.method}, seed {key.seed}",
                "name each task once: a case must not be counted twice",
            )
        position[group["task"], group["k"], group["seed"]] = len(runs)
        runs[key] = group["task"]
    columns = [table[name].to_numpy() for name in ("task", "k", "seed")]
    unique, inverse = np.unique(np.stack(columns), axis=1, return_inverse=True)
    numbers = np.array([position[tuple(column)] for column in unique.T.tolist()])
    return runs, numbers[inverse]


def _site(
    site: str,
    internal: bool,
    table: pa.Table,
    findings: tuple[str, ...],
    runs: dict[RunKey, int],
    run_of: NDArray[np.int64],
) -> SiteScores:
    scan_ids, scan = _codes(table["scan_id"])
    _, patient = _codes(table["patient_id"])
    names, code = _codes(table["finding"])
    finding = np.array([findings.index(name) for name in names])[code]
    truth = table["y_true"].to_numpy().astype(np.int8)
    y_true = np.full((len(scan_ids), len(findings)), UNKNOWN, dtype=np.int8)
    y_true[scan, finding] = truth
    if (y_true[scan, finding] != truth).any():
        raise LabelError(
            "tasks disagree on the truth of a scan", remedy="make all tasks from one label table"
        )
    scores = np.full((len(runs), len(scan_ids), len(findings)), np.nan)
    scores[run_of, scan, finding] = table["y_score"].to_numpy()
    if np.isfinite(scores).sum() < table.num_rows:
        raise _fault(
            f"a case at {site} is counted twice",
            "keep one score per scan, finding, method and seed",
        )
    patient_of = np.zeros(len(scan_ids), dtype=np.int64)
    patient_of[scan] = patient
    by_run = dict(zip(runs, scores, strict=True))
    for run, values in by_run.items():
        _require_all_scored(site, run, values, y_true, findings)
    return SiteScores(site, internal, tuple(scan_ids), patient_of, y_true, by_run)


def _require_all_scored(
    site: str, run: RunKey, scores: Floats, y_true: NDArray[np.int8], findings: tuple[str, ...]
) -> None:
    """A finding is scored on all labelled scans of a site, or the run does not know it at all."""
    missing = np.isnan(scores) & (y_true != UNKNOWN)
    partly = missing.any(axis=0) & np.isfinite(scores).any(axis=0)
    if partly.any():
        name = findings[int(np.flatnonzero(partly)[0])]
        n_missing = int(missing[:, partly].sum())
        raise _fault(
            f"{run.method} has no score for {n_missing} labelled cases at {site} (first: {name})",
            "methods are compared on the same scans: score them, or leave them out of all tasks",
        )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values in sorted order, and for each row which one it is."""
    encoded = column.combine_chunks().dictionary_encode()
    values = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(values)
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return values[order].tolist(), rank[encoded.indices.to_numpy()]


def _fault(message: str, remedy: str) -> HeadctError:
    return HeadctError(message, remedy=remedy, code="predictions")
