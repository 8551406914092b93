"""TASK... -> EVAL/: how good each method is, where, how sure that is, and which one is better.

EVAL/  evaluation.json      what was compared, on whom, with which hashes, thresholds and seeds
       tables/              tidy Parquet, one row per number
         metrics            method x finding x site x metric with patient-bootstrap intervals
         comparisons        paired differences between methods, corrected for multiplicity
         label_efficiency   mean and spread over draws, by K or number of labels
         reliability        score against observed share, in bins
         calibration        temperatures, and the calibration error without and with them
         retrieval          mean average precision of kNN tasks
         subgroups          metrics by sex, age, scanner, kernel, thickness, where a store was given
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from headct.adapt.task import TaskInfo
from headct.atomic import replacing, write_json
from headct.config import Config
from headct.errors import UsageError
from headct.evaluate.collect import Collection, SiteScores, collect
from headct.evaluate.comparisons import compare
from headct.evaluate.estimates import Arm, SiteEstimates, estimate
from headct.evaluate.subgroups import groups_of
from headct.evaluate.tables import (
    calibration_rows,
    counts,
    label_efficiency_rows,
    metric_rows,
    reliability_rows,
    retrieval_rows,
)
from headct.progress import tracking
from headct.run import write_run_record
from headct.store.store import open_store

EVALUATION = "evaluation.json"
TABLES = (
    "metrics",
    "comparisons",
    "label_efficiency",
    "reliability",
    "calibration",
    "retrieval",
    "subgroups",
)
FORMAT_VERSION = 1


class EvaluationConfig(Config):
    """How an evaluation is done."""

    n_boot: int = Field(default=1000, ge=0)
    """Resamples of patients behind each interval."""
    seed: int = 0
    """Of the resamples."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals."""
    min_positives: int = Field(default=10, ge=1)
    """Fewest positive (and negative) scans for a finding to count in the macro mean."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods; none: pretrained against every other one."""


def evaluate(
    tasks: Sequence[Path], out: Path, config: EvaluationConfig, store: Path | None = None
) -> dict[str, Any]:
    """Evaluate tasks on their test scans and write EVAL.

    Args:
        tasks: task folders.
        out: EVAL folder; made, or replaced.
        config: how.
        store: of the scans; with it subgroups are evaluated too.

    Returns:
        The content of evaluation.json.

    Raises:
        HeadctError: as `collect`.
        UsageError: a pair names a method that no task has, or `out` holds something else.
    """
    if out.exists() and not (out / EVALUATION).is_file() and any(out.iterdir()):
        raise UsageError(f"{out.name!r} exists and is no evaluation", remedy="give another --out")
    started = time.process_time()
    collection = collect(tasks)
    arms = main_arms(collection)
    pairs = config.compare or default_pairs(collection, arms)
    _require_methods(pairs, arms)
    estimates = []
    with tracking("evaluate", len(collection.sites), "sites") as tracker:
        for site in collection.sites:
            estimates.append(_estimate(collection, site, arms, config))
            tracker.advance()
    tables = {
        "metrics": [row for found in estimates for row in metric_rows(found, config.level)],
        "comparisons": [row for found in estimates for row in compare(found, pairs, config.level)],
        "label_efficiency": label_efficiency_rows(collection, estimates),
        "reliability": [row for found in estimates for row in reliability_rows(found)],
        "calibration": [row for found in estimates for row in calibration_rows(found, collection)],
        "retrieval": retrieval_rows(
            collection, arms, n_boot=config.n_boot, seed=config.seed, level=config.level
        ),
    }
    tables["subgroups"] = _subgroup_rows(collection, arms, config, store) if store else []
    summary = _summary(collection, estimates, config, pairs)
    summary["cpu_s"] = round(time.process_time() - started, 2)
    _say_what_goes(out / EVALUATION, summary)
    (out / EVALUATION).unlink(missing_ok=True)
    write_run_record(out, config, seed=config.seed, verb="evaluate")
    for name, rows in tables.items():
        with replacing(out / "tables" / f"{name}.parquet") as aside:
            pq.write_table(pa.Table.from_pylist(rows), aside, compression="zstd")
    write_json(out / EVALUATION, summary)
    return summary


def _say_what_goes(earlier: Path, summary: dict[str, Any]) -> None:
    """Which tasks of the evaluation that is replaced are not in the new one."""
    if not earlier.is_file():
        return
    with suppress(ValueError, KeyError, TypeError):  # half written, or of another version
        then = [_task_words(method) for method in json.loads(earlier.read_text())["methods"]]
        now = {_task_words(method) for method in summary["methods"]}
        if gone := [words for words in then if words not in now]:
            print(f"the evaluation that was there also had {', '.join(gone)}", file=sys.stderr)


def _task_words(method: dict[str, Any]) -> str:
    shots = f", {'/'.join(map(str, method['k']))} shots" if method["k"] else ""
    return f"{method['method']} (seed {method['seed']}, {method['n_train']} scans{shots})"


def _subgroup_rows(
    collection: Collection, arms: Sequence[Arm], config: EvaluationConfig, store: Path
) -> list[dict[str, Any]]:
    manifest = open_store(store).manifest
    rows = []
    for site in collection.sites:
        for dimension, group, part in groups_of(site, manifest):
            found = _estimate(collection, part, arms, config)
            about = {"dimension": dimension, "group": group}
            rows += [about | row for row in metric_rows(found, config.level)]
    return rows


def main_arms(collection: Collection) -> list[Arm]:
    """Each method that saw all labels, with its largest number of them; pretrained first.

    Where all methods are few-shot, they are compared at their largest K.
    """
    largest: dict[str, Arm] = {}
    for run in [run for run in collection.runs if run.k == 0] or collection.runs:
        arm = Arm(run.method, run.k, run.n_train)
        largest[run.method] = max(arm, largest.get(run.method, arm))
    pretrained = {info.method: is_pretrained(info) for info in collection.tasks}
    order = [info.method for info in collection.tasks]
    return sorted(largest.values(), key=lambda a: (not pretrained[a.method], order.index(a.method)))


def is_pretrained(info: TaskInfo) -> bool:
    """Whether a method starts from a pretrained encoder; all others are floors."""
    return info.kind in ("finetune", "lora") or (
        info.kind in ("probe", "knn", "attentive", "fewshot")
        and info.source not in ("histogram", "blocks")
        and not info.source.startswith("random-")
    )


def default_pairs(collection: Collection, arms: Sequence[Arm]) -> tuple[tuple[str, str], ...]:
    """Pretrained methods against each other and against every floor."""
    pretrained = {info.method for info in collection.tasks if is_pretrained(info)}
    ours = [arm.method for arm in arms if arm.method in pretrained]
    floors = [arm.method for arm in arms if arm.method not in pretrained]
    return (*itertools.product(ours, floors), *itertools.combinations(ours, 2))


def _require_methods(pairs: Sequence[tuple[str, str]], arms: Sequence[Arm]) -> None:
    known = {arm.method for arm in arms}
    unknown = sorted({name for pair in pairs for name in pair} - known)
    if unknown:
        raise UsageError(
            f"no task is about {', '.join(unknown)}",
            remedy=f"compare two of: {', '.join(sorted(known))}",
        )


def _estimate(
    collection: Collection, site: SiteScores, arms: Sequence[Arm], config: EvaluationConfig
) -> SiteEstimates:
    return estimate(
        site,
        arms,
        collection.findings,
        collection.thresholds,
        n_boot=config.n_boot,
        seed=config.seed,
        min_positives=config.min_positives,
    )


def _summary(
    collection: Collection,
    estimates: Sequence[SiteEstimates],
    config: EvaluationConfig,
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "findings": list(collection.findings),
        "methods": [_method(info, collection) for info in collection.tasks],
        "sites": [_site(found) for found in estimates],
        "compared": [list(pair) for pair in pairs],
    }


def _method(info: TaskInfo, collection: Collection) -> dict[str, Any]:
    shown = (
        *("method", "kind", "source", "bundle_hash", "seed", "threshold_specificity"),
        *("rule_out_sensitivity", "rule_out_thresholds", "temperatures"),
    )
    runs = [run for run, task in collection.task_of.items() if task is info]
    return {name: getattr(info, name) for name in shown} | {
        "pretrained": is_pretrained(info),
        "preprocessing_hash": info.preprocessing.hash,
        "n_train": max(run.n_train for run in runs),
        "n_positive": info.n_positive,
        "k": sorted({run.k for run in runs if run.k}),
        "thresholds": info.thresholds,
    }


def _site(found: SiteEstimates) -> dict[str, Any]:
    per_finding = {name: counts(found, name) for name in found.findings}
    return {
        "site": found.site.site,
        "internal": found.site.internal,
        "n_scans": len(found.site.scan_ids),
        "n_patients": len(np.unique(found.site.patient_of)),
        "findings": per_finding,
        "in_macro": [
            name for name, used in zip(found.findings, found.in_macro, strict=True) if used
        ],
        "too_few": [
            name for name, enough in zip(found.findings, found.enough, strict=True) if not enough
        ],
    }
