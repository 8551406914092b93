"""Which method is better, on the same patients: differences with intervals and corrected tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headct.evaluate.bootstrap import interval, p_value
from headct.evaluate.collect import UNKNOWN
from headct.evaluate.delong import holm, paired_test
from headct.evaluate.estimates import SiteEstimates
from headct.evaluate.metrics import AREAS, METRICS, Floats

Row = dict[str, Any]
MACRO = "macro"


def compare(estimates: SiteEstimates, pairs: Sequence[tuple[str, str]], level: float) -> list[Row]:
    """Differences `a` - `b` of AUROC and AUPRC, per finding and macro.

    Per finding, AUROC gets DeLong's p (patients as clusters), AUPRC the bootstrap's; Holm corrects
    over the findings of one pair. Macro differences get the bootstrap's p; Holm corrects over
    the pairs. Families are per site and metric.

    Args:
        estimates: of one site.
        pairs: names of methods; pairs of which one is absent are left out.
        level: of the intervals.
    """
    position = {arm.method: a for a, arm in enumerate(estimates.arms)}
    present = [(a, b) for a, b in pairs if a in position and b in position]
    rows: list[Row] = []
    for metric in AREAS:
        macro = [_macro(estimates, position[a], position[b], metric, level) for a, b in present]
        rows += _corrected(macro)
        for a, b in present:
            rows += _corrected(_per_finding(estimates, position[a], position[b], metric, level))
    return rows


def _macro(estimates: SiteEstimates, a: int, b: int, metric: str, level: float) -> Row:
    m = METRICS.index(metric)
    values, replicates = estimates.macro()
    n = len(estimates.site.scan_ids)
    counts = {"n": n, "n_pos": None, "enough": bool(estimates.in_macro.any())}
    row = _row(estimates, a, b, metric, MACRO, counts)
    return row | _difference(values[:, m], replicates[:, m], a, b, level)


def _per_finding(estimates: SiteEstimates, a: int, b: int, metric: str, level: float) -> list[Row]:
    m = METRICS.index(metric)
    rows = []
    for f, finding in enumerate(estimates.findings):
        truth = estimates.site.y_true[:, f]
        counts = {
            "n": int((truth != UNKNOWN).sum()),
            "n_pos": int((truth == 1).sum()),
            "enough": bool(estimates.enough[f]),
        }
        row = _row(estimates, a, b, metric, finding, counts)
        row |= _difference(estimates.values[:, f, m], estimates.replicates[:, f, m], a, b, level)
        if metric == "auroc" and np.isfinite(row["difference"]):
            row |= _delong(estimates, a, b, f)
        rows.append(row)
    return rows


def _row(estimates: SiteEstimates, a: int, b: int, metric: str, finding: str, counts: Row) -> Row:
    names = {"method_a": estimates.arms[a].method, "method_b": estimates.arms[b].method}
    site = {"site": estimates.site.site, "internal": estimates.site.internal}
    return {**names, **site, "finding": finding, "metric": metric, **counts}


def _difference(values: Floats, replicates: Floats, a: int, b: int, level: float) -> Row:
    lo, hi = interval(replicates[a] - replicates[b], level)
    p = p_value(replicates[a] - replicates[b])
    difference = float(values[a] - values[b])
    return {"difference": difference, "lo": lo, "hi": hi, "p": p, "test": "bootstrap"}


def _delong(estimates: SiteEstimates, a: int, b: int, f: int) -> Row:
    site = estimates.site
    known = site.y_true[:, f] != UNKNOWN
    scores_a, scores_b = (
        np.stack([site.scores[run][known, f] for run in estimates.arms[arm].runs(site.scores)])
        for arm in (a, b)
    )
    found = paired_test(site.y_true[known, f], scores_a, scores_b, site.patient_of[known])
    return {"p": found.p, "test": "DeLong, patients as clusters"}


def _corrected(family: list[Row]) -> list[Row]:
    p = np.array([row["p"] if row["enough"] else np.nan for row in family], dtype=np.float64)
    return [row | {"p_holm": float(q)} for row, q in zip(family, holm(p), strict=True)]
