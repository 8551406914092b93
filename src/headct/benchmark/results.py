"""All tasks of a benchmark, evaluated together: a tidy table, and an EVAL for the report."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headct.atomic import replacing, write_json
from headct.benchmark.matrix import Failed, task_folders
from headct.benchmark.spec import BenchmarkSpec
from headct.evaluate.collect import collect
from headct.evaluate.comparisons import MACRO
from headct.evaluate.estimates import Arm, areas_of_run, estimate
from headct.evaluate.evaluation import EvaluationConfig, evaluate
from headct.evaluate.metrics import AREAS
from headct.evaluate.results import BENCHMARK
from headct.evaluate.tables import macro_of, metric_rows
from headct.progress import tracking

Row = dict[str, Any]
TABLE = "benchmark.parquet"


def write_results(spec: BenchmarkSpec, out: Path, failed: list[Failed]) -> list[Row]:
    """Evaluate every finished task and write BENCH/eval and BENCH/benchmark.parquet.

    Returns:
        The rows of benchmark.parquet: encoder, method, k, n_train, seed (null: all seeds
        together, with interval), site, internal, finding, metric, value, lo, hi.
    """
    tasks = task_folders(spec, out)
    config = EvaluationConfig(
        n_boot=spec.n_boot, min_positives=spec.min_positives, compare=spec.compare
    )
    evaluate(tasks, out / "eval", config, spec.store)
    write_json(
        out / "eval" / BENCHMARK,
        {
            "pretrained_on": {
                name: e.n_pretrained for name, e in spec.encoders.items() if e.n_pretrained
            },
            "failed": [vars(one) for one in failed],
        },
    )
    rows = _rows(config, tasks)
    with replacing(out / TABLE) as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside, compression="zstd")
    return rows


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
