"""Every metric of every method at one site, with its bootstrap replicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headct.evaluate.bootstrap import PatientBootstrap
from headct.evaluate.collect import UNKNOWN, RunKey, SiteScores, Thresholds
from headct.evaluate.metrics import METRICS, Floats, ScoredCases


@dataclass(frozen=True, order=True)
class Arm:
    """A method with one number of labels; its seeds or draws are its runs."""

    method: str
    k: int
    n_train: int

    def runs(self, of: Iterable[RunKey]) -> list[RunKey]:
        """The runs that belong to this arm, by seed."""
        mine = (self.method, self.k, self.n_train)
        return sorted(run for run in of if (run.method, run.k, run.n_train) == mine)


@dataclass(frozen=True)
class SiteEstimates:
    """Estimates at one site; metrics in the order of METRICS.

    Attributes:
        site: the test scans.
        arms: a methods.
        findings: f findings.
        enough: [f] whether a finding has the positives (and negatives) that were asked for.
        in_macro: [f] those with enough that every method knows, so that means are comparable.
        values: [a f metric], the mean over the seeds of an arm.
        replicates: [a f metric resample], of the same resamples for all.
    """

    site: SiteScores
    arms: tuple[Arm, ...]
    findings: tuple[str, ...]
    enough: NDArray[np.bool_]
    in_macro: NDArray[np.bool_]
    values: Floats
    replicates: Floats

    def macro(self) -> tuple[Floats, Floats]:
        """Mean over the findings of `in_macro`: [a metric], [a metric resample]."""
        chosen = self.in_macro
        return mean_of_defined(self.values[:, chosen]), mean_of_defined(self.replicates[:, chosen])


def mean_of_defined(values: Floats, axis: int = 1) -> Floats:
    """Mean over an axis that leaves NaN out; NaN where nothing is left."""
    defined = np.isfinite(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    mean: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def estimate(
    site: SiteScores,
    arms: Sequence[Arm],
    findings: tuple[str, ...],
    thresholds: Thresholds,
    *,
    n_boot: int,
    seed: int,
    min_positives: int,
) -> SiteEstimates:
    """All metrics of some arms at a site; the same patient resamples for all of them.

    Args:
        site: test scans and scores.
        arms: which methods.
        findings: names of the columns of the site's arrays.
        thresholds: of each run and finding.
        n_boot: resamples of patients; 0 for none.
        seed: of the resamples.
        min_positives: fewest positives (and negatives) for a finding to count in the macro mean.
    """
    runs = [arm.runs(site.scores) for arm in arms]
    known = [np.flatnonzero(site.y_true[:, f] != UNKNOWN) for f in range(len(findings))]
    cases = {
        (run, f): _cases(site, run, f, known[f], thresholds[run][findings[f]])
        for of_arm in runs
        for run in of_arm
        for f in range(len(findings))
        if findings[f] in thresholds[run] and np.isfinite(site.scores[run][known[f], f]).all()
    }
    shape = (len(arms), len(findings), len(METRICS))
    values, replicates = np.full(shape, np.nan), np.full((*shape, n_boot), np.nan)
    everyone = np.ones((len(site.scan_ids), 1))
    _fill(values[..., None], slice(0, 1), everyone, cases, runs, known)
    for numbers, weights in PatientBootstrap(site.patient_of, n_boot, seed).chunks():
        _fill(replicates, numbers, weights, cases, runs, known)
    n_pos, n_neg = (site.y_true == 1).sum(axis=0), (site.y_true == 0).sum(axis=0)
    enough = np.minimum(n_pos, n_neg) >= max(min_positives, 1)
    known_to_all = np.isfinite(values[:, :, METRICS.index("auroc")]).all(axis=0)
    return SiteEstimates(
        site, tuple(arms), findings, enough, enough & known_to_all, values, replicates
    )


def areas_of_run(site: SiteScores, run: RunKey) -> Floats:
    """AUROC and AUPRC of one run, [f 2]; NaN for a finding that it does not know."""
    areas = np.full((site.y_true.shape[1], 2), np.nan)
    for f, truth in enumerate(site.y_true.T):
        known = truth != UNKNOWN
        scores = site.scores[run][known, f]
        if known.any() and np.isfinite(scores).all():
            once = np.ones((len(scores), 1))
            areas[f] = np.ravel(ScoredCases(truth[known], scores).areas(once))
    return areas


def _cases(
    site: SiteScores,
    run: RunKey,
    f: int,
    known: NDArray[np.int64],
    thresholds: tuple[float | None, float | None],
) -> ScoredCases:
    return ScoredCases(site.y_true[known, f], site.scores[run][known, f], *thresholds)


def _fill(
    out: Floats,
    numbers: slice,
    weights: Floats,
    cases: dict[tuple[RunKey, int], ScoredCases],
    runs: list[list[RunKey]],
    known: list[NDArray[np.int64]],
) -> None:
    """Put the metrics under some weights [n b] into `out` [a f metric resample]."""
    for f, rows in enumerate(known):
        of_finding = weights[rows]
        for a, of_arm in enumerate(runs):
            scored = [cases[run, f] for run in of_arm if (run, f) in cases]
            if scored:
                per_seed = [
                    np.stack([found[name] for name in METRICS])
                    for found in (case.metrics(of_finding) for case in scored)
                ]
                out[a, f, :, numbers] = np.mean(per_seed, axis=0)
