"""All tasks of a benchmark, evaluated together: a tidy table, and EVAL folders for reports."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headct.atomic import replacing, write_json
from headct.benchmark.jobs import Failed
from headct.benchmark.matrix import task_folders
from headct.benchmark.spec import BenchmarkSpec
from headct.errors import HeadctError
from headct.evaluate.carry_over import carry_over_rows
from headct.evaluate.collect import collect
from headct.evaluate.comparisons import MACRO
from headct.evaluate.estimates import Arm, areas_of_run, estimate
from headct.evaluate.evaluation import EvaluationConfig, evaluate
from headct.evaluate.metrics import AREAS
from headct.evaluate.results import BENCHMARK, read_results
from headct.evaluate.tables import macro_of, metric_rows
from headct.progress import tracking

Row = dict[str, Any]
TABLE = "benchmark.parquet"


def write_results(spec: BenchmarkSpec, out: Path, failed: list[Failed]) -> list[Row]:
    """Evaluate every finished task and write the EVAL folders and BENCH/benchmark.parquet.

    Returns:
        The rows of benchmark.parquet: trained_at (null: all sites together), encoder, method, k,
        n_train, seed (null: all seeds together, with interval), site, internal, finding, metric,
        value, lo, hi.

    Raises:
        HeadctError: no task of the matrix could be made.
    """
    rows: list[Row] = []
    carried: list[Row] = []
    evaluated: list[Path] = []
    for site in spec.train_sites or ("",):
        tasks = task_folders(spec, out, site)
        if tasks:
            folder = eval_folder(out, site)
            config = EvaluationConfig(
                n_boot=spec.n_boot, min_positives=spec.min_positives, compare=spec.compare
            )
            evaluate(tasks, folder, config, spec.store)
            rows += [{"trained_at": site or None} | row for row in _rows(config, tasks)]
            carried += carry_over_rows(read_results(folder))
            evaluated.append(folder)
    if not evaluated:
        raise HeadctError(
            f"none of {len(failed)} tasks could be made; the first: {failed[0].message}",
            remedy=f"see the files in {out.name}/jobs",
            code="benchmark",
        )
    about = {
        "pretrained_on": {
            name: e.n_pretrained for name, e in spec.encoders.items() if e.n_pretrained
        },
        "failed": [vars(one) for one in failed],
        "carry_over": carried,
    }
    for folder in evaluated:
        write_json(folder / BENCHMARK, about)
    with replacing(out / TABLE) as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside, compression="zstd")
    return rows


def eval_folder(out: Path, train_site: str) -> Path:
    """The evaluation of the tasks of one training site; of all sites together without a name."""
    return out / "eval" / train_site if train_site else out / "eval"


def _rows(config: EvaluationConfig, tasks: list[Path]) -> list[Row]:
    collection = collect(tasks)
    arms = sorted({Arm(run.method, run.k, run.n_train) for run in collection.runs})
    rows: list[Row] = []
    with tracking("tabulate", len(collection.sites), "sites") as tracker:
        for site in collection.sites:
            found = estimate(
                site,
                arms,
                collection.findings,
                collection.thresholds,
                n_boot=config.n_boot,
                seed=config.seed,
                min_positives=config.min_positives,
            )
            rows += [
                _named(row.pop("method")) | {"seed": None} | row
                for row in metric_rows(found, config.level)
            ]
            names = (*collection.findings, MACRO)
            for run in collection.runs:
                areas = areas_of_run(site, run)
                values = np.vstack([areas, macro_of(areas, found)])
                for (f, finding), (m, metric) in itertools.product(
                    enumerate(names), enumerate(AREAS)
                ):
                    where = {"site": site.site, "internal": site.internal, "finding": finding}
                    what = {"k": run.k, "n_train": run.n_train, "seed": run.seed}
                    value = {"metric": metric, "value": float(values[f, m])}
                    rows.append(_named(run.method) | what | where | value)
            tracker.advance()
    return rows


def _named(series: str) -> Row:
    encoder, _, method = series.rpartition(".")
    return {"encoder": encoder or None, "method": method}
