"""The rows of EVAL/tables: tidy, one number each, with the counts behind it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from headct.adapt.operating import apply_temperature
from headct.evaluate.bootstrap import PatientBootstrap, interval, pivotal_interval
from headct.evaluate.calibration import reliability_curve
from headct.evaluate.collect import UNKNOWN, Collection
from headct.evaluate.comparisons import MACRO, Row
from headct.evaluate.estimates import Arm, SiteEstimates, areas_of_run
from headct.evaluate.metrics import AREAS, METRICS, Floats, ScoredCases

POOLED = "all findings"
"""Name of the reliability curve over the cases of all findings."""


def metric_rows(found: SiteEstimates, level: float) -> list[Row]:
    """One row per method, finding (macro too) and metric, with its interval."""
    rows = []
    macro, macro_replicates = found.macro()
    for a in range(len(found.arms)):
        rows += _rows_of(found, a, MACRO, macro[a], macro_replicates[a], level)
        for f, finding in enumerate(found.findings):
            rows += _rows_of(found, a, finding, found.values[a, f], found.replicates[a, f], level)
    return rows


def _rows_of(
    found: SiteEstimates, a: int, finding: str, values: Floats, replicates: Floats, level: float
) -> list[Row]:
    """One row per metric; values [metric], replicates [metric resample]."""
    arm, site = found.arms[a], found.site
    shared: Row = {
        "method": arm.method,
        "k": arm.k,
        "n_train": arm.n_train,
        "n_seeds": len(arm.runs(site.scores)),
        "site": site.site,
        "internal": site.internal,
        "finding": finding,
        **counts(found, finding),
    }
    rows = []
    for m, metric in enumerate(METRICS):
        value = float(values[m])
        inflated = metric == "ece_error"
        lo, hi = (
            pivotal_interval(value, replicates[m], level)
            if inflated
            else interval(replicates[m], level)
        )
        rows.append(shared | {"metric": metric, "value": value, "lo": lo, "hi": hi})
    return rows


def counts(found: SiteEstimates, finding: str) -> Row:
    """Scans with a known label, positives and patients behind a number."""
    site = found.site
    if finding == MACRO:
        known = (site.y_true != UNKNOWN).any(axis=1)
        n_pos, enough = int((site.y_true == 1).sum()), bool(found.in_macro.any())
    else:
        f = found.findings.index(finding)
        known = site.y_true[:, f] != UNKNOWN
        n_pos, enough = int((site.y_true[:, f] == 1).sum()), bool(found.enough[f])
    n_patients = len(np.unique(site.patient_of[known]))
    return {"n": int(known.sum()), "n_pos": n_pos, "n_patients": n_patients, "enough": enough}


def label_efficiency_rows(collection: Collection, estimates: Sequence[SiteEstimates]) -> list[Row]:
    """Mean and spread over draws or seeds of every arm, few-shot and all labels alike."""
    arms = sorted({Arm(run.method, run.k, run.n_train) for run in collection.runs})
    names = (*collection.findings, MACRO)
    rows = []
    for found, arm in itertools.product(estimates, arms):
        areas = [areas_of_run(found.site, run) for run in arm.runs(found.site.scores)]
        draws = np.stack([np.vstack([a, macro_of(a, found)]) for a in areas])
        for (f, finding), (m, metric) in itertools.product(enumerate(names), enumerate(AREAS)):
            if np.isfinite(draws[:, f, m]).all():
                where = {"site": found.site.site, "internal": found.site.internal}
                what = {"finding": finding, "metric": metric}
                rows.append(asdict(arm) | where | what | _spread(draws[:, f, m]))
    return rows


def macro_of(areas: Floats, found: SiteEstimates) -> Floats:
    """Mean over the findings that count at a site [m]; nan where none has enough positives."""
    if not found.in_macro.any():
        return np.full(areas.shape[1], np.nan)
    mean: Floats = areas[found.in_macro].mean(axis=0)
    return mean


def _spread(values: Floats) -> Row:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "n_draws": len(values),
    }


def calibration_rows(found: SiteEstimates, collection: Collection) -> list[Row]:
    """Calibration error of the first seed of each method, before and after its temperatures."""
    site, rows = found.site, []
    for arm, (f, finding) in itertools.product(found.arms, enumerate(found.findings)):
        run = arm.runs(site.scores)[0]
        scores = site.scores[run][:, f]
        known = (site.y_true[:, f] != UNKNOWN) & np.isfinite(scores)
        if not known.any():
            continue
        temperature = collection.task_of[run].temperatures.get(finding, 1.0)
        raw = apply_temperature(scores[known], 1 / temperature)
        errors = [
            float(ScoredCases(site.y_true[known, f], s).metrics()["ece_error"][0])
            for s in (raw, scores[known])
        ]
        where = {"method": arm.method, "site": site.site, "internal": site.internal}
        what = {"finding": finding, "temperature": temperature}
        rows.append(where | what | {"ece_raw": errors[0], "ece": errors[1]})
    return rows


def retrieval_rows(
    collection: Collection, arms: Sequence[Arm], *, n_boot: int, seed: int, level: float
) -> list[Row]:
    """Mean average precision of retrieval per method, site and finding; patients resampled.

    Every case counts once, with its mean over the seeds of the arm; so does chance.
    """
    rows = []
    for (arm, site, finding), cases in sorted(_retrieved(collection, arms).items()):
        precision, chance = (
            np.array([np.mean([row[name] for row in of_seeds]) for of_seeds in cases.values()])
            for name in ("average_precision", "chance")
        )
        patients = [of_seeds[0]["patient_id"] for of_seeds in cases.values()]
        _, patient = np.unique(patients, return_inverse=True)
        draws = [
            (precision @ weights) / weights.sum(axis=0)
            for _, weights in PatientBootstrap(patient, n_boot, seed).chunks()
        ]
        lo, hi = interval(np.concatenate(draws) if draws else np.empty(0), level)
        about = {"method": arm.method, "n_train": arm.n_train, "site": site, "finding": finding}
        found = {"n": len(cases), "map": float(precision.mean()), "lo": lo, "hi": hi}
        rows.append(about | found | {"chance": float(chance.mean())})
    return rows


def _retrieved(
    collection: Collection, arms: Sequence[Arm]
) -> dict[tuple[Arm, str, str], dict[str, list[Row]]]:
    """By arm, site and finding: the rows of each scan, one per seed."""
    groups: dict[tuple[Arm, str, str], dict[str, list[Row]]] = {}
    for arm in arms:
        for run in arm.runs(collection.retrieval):
            for row in collection.retrieval[run]:
                cases = groups.setdefault((arm, row["site"], row["finding"]), {})
                cases.setdefault(row["scan_id"], []).append(row)
    return groups


def reliability_rows(found: SiteEstimates) -> list[Row]:
    """Reliability curves of the first seed of each method: per finding, and all cases pooled."""
    site, rows = found.site, []
    for arm in found.arms:
        scores = site.scores[arm.runs(site.scores)[0]]
        usable = (site.y_true != UNKNOWN) & np.isfinite(scores)
        for f, finding in enumerate((*found.findings, POOLED)):
            chosen = usable.copy()
            if finding != POOLED:
                chosen[:, :f] = chosen[:, f + 1 :] = False
            curve = reliability_curve(site.y_true[chosen], scores[chosen])
            shared = {"method": arm.method, "site": site.site, "internal": site.internal}
            rows += [shared | {"finding": finding} | asdict(point) for point in curve]
    return rows
