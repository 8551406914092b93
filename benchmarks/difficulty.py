"""How hard the phantom is: floors without anatomy, an oracle that knows where to look, learning.

    python benchmarks/difficulty.py work --preset base            # floors and oracle, 3 CPU minutes
    python benchmarks/difficulty.py work --preset base --what curve --labels 300 1000 3000

Scans are rendered straight into WORK, on a coarse grid, in shards: run again, it goes on where it
stopped. Each line that it prints is one score: macro-AUROC and that of each finding, inside (first
site) and outside (second site).

- `histogram`, `blocks`: logistic regression on what `headct.adapt.floors` reads without anatomy.
  A finding that these can read is too easy.
- `oracle`: trees on the HU in the region of the truth mask, in its mirror image and in its rim, for
  patients with one finding and the same patients without, in the same region. The whole-brain
  findings, which have no region, are told by the true widths of ventricles and sulci and the true
  contrast of grey and white matter. Low values mean that a finding cannot be seen at all.
- `curve`: a small 3D network from scratch on more and more labels: is there something to learn?
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from difficulty_scans import GRID, PLACED, UNPLACED, Arrays, Job, collect, draw
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from headct.adapt.floors import blocks, histogram
from headct.adapt.logistic import fit_logistic
from headct.phantom.profile import FINDINGS, PhantomPreset, load_preset

STRENGTHS = 10.0 ** np.arange(-4, 2)
FOLDS = 5
N_MEASURED = 1500


def measures(job: Job, n: int) -> Arrays:
    """True widths and contrasts of brains, and the findings that have no place; not rendered."""
    x, y = [], []
    for patient in range(n):
        spec = draw(job, patient)
        b, named = spec.brain, {lesion.finding for lesion in spec.lesions}
        widths = [b.ventricle, b.sulcus, b.gap, b.third, b.grey_hu - b.white_hu, b.white_hu]
        widths += [b.temporal_horn, b.cistern]
        x.append([*widths, b.periventricular_hu, spec.anatomy.age_years])
        shifted = abs(spec.midline_shift_mm) >= spec.shift_label_mm
        y.append([f in named or (f == "midline_shift" and shifted) for f in UNPLACED])
    return {"x": np.array(x, np.float32), "y": np.array(y, np.int8)}


def table(shards: Iterator[Arrays], of: Callable[[Arrays], Arrays]) -> Arrays:
    rows = [of(shard) for shard in shards]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def floor_features(shard: Arrays) -> Arrays:
    return histogram(shard["hu"]) | blocks(shard["hu"], GRID.spacing_mm_zyx) | {"y": shard["y"]}


def logistic_scores(
    train: NDArray[Any], y: NDArray[np.int8], tests: list[NDArray[Any]]
) -> list[NDArray[np.float64]]:
    """Scores [n f] of logistic regression; its strength is chosen by cross-validation."""
    mean, sd = train.mean(0), train.std(0) + 1e-6
    x = ((train - mean) / sd).astype(np.float64)
    fold = np.arange(len(x)) % FOLDS
    total = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        model = fit_logistic(x[fold != k], y[fold != k], STRENGTHS)
        scores = model.scores(x[fold == k])
        total += [macro(y[fold == k], scores[:, i])[0] for i in range(len(STRENGTHS))]
    best = STRENGTHS[[int(total.argmax())]]
    model = fit_logistic(x, y, best)
    return [model.scores(((t - mean) / sd).astype(np.float64))[:, 0] for t in tests]


def macro(y: NDArray[np.int8], scores: NDArray[np.float64]) -> tuple[float, dict[str, float]]:
    """Mean AUROC over the findings that are both present and absent, and each of them."""
    each = {
        finding: float(roc_auc_score(y[:, i], scores[:, i]))
        for i, finding in enumerate(FINDINGS[: y.shape[1]])
        if 0 < y[:, i].sum() < len(y)
    }
    return float(np.mean(list(each.values()))), each


def report(name: str, part: str, n_train: int, found: list[tuple[float, dict[str, float]]]) -> None:
    """One line: means over the draws of training scans."""
    each = {f: round(float(np.mean([e[f] for _, e in found if f in e])), 2) for f in found[0][1]}
    line = {"what": name, "test": part, "n_train": n_train, "draws": len(found)}
    line["macro"] = round(float(np.mean([m for m, _ in found])), 3)
    print(json.dumps(line | each), flush=True)


def floors(preset: PhantomPreset, given: argparse.Namespace) -> None:
    n = {"train": given.n_train * given.draws, "inside": given.n_test, "outside": given.n_test}
    data = {
        part: table(collect("scans", part, n[part], preset, given.work, given.jobs), floor_features)
        for part in n
    }
    for name in ("histogram", "blocks"):
        found: dict[str, list[tuple[float, dict[str, float]]]] = {"inside": [], "outside": []}
        for d in range(given.draws):
            here = slice(d * given.n_train, (d + 1) * given.n_train)
            tests = [data[part][name] for part in found]
            scores = logistic_scores(data["train"][name][here], data["train"]["y"][here], tests)
            for part, score in zip(found, scores, strict=True):
                found[part].append(macro(data[part]["y"], score))
        for part, results in found.items():
            report(name, part, given.n_train, results)


def oracle(preset: PhantomPreset, given: argparse.Namespace) -> None:
    n_test = given.n_oracle_test or given.n_oracle
    parts = {"train": given.n_oracle, "inside": n_test, "outside": n_test}
    data = {
        part: table(collect("oracle", part, n * len(PLACED), preset, given.work, given.jobs), dict)[
            "x"
        ]
        for part, n in parts.items()
    }
    whole = {part: measures(Job("", preset, part, 0, 0, ""), N_MEASURED) for part in parts}
    for part in ("inside", "outside"):
        each = {}
        for k, finding in enumerate(PLACED):
            x, y = _pairs(data["train"][k :: len(PLACED)])
            tests, wanted = _pairs(data[part][k :: len(PLACED)])
            each[finding] = _trees(x, y, tests, wanted)
        for k, finding in enumerate(UNPLACED):
            y, wanted = (whole[p]["y"][:, k] for p in ("train", part))
            if finding == "midline_shift":
                each[finding] = 1.0  # it is defined by the measure
            elif y.any() and wanted.any():
                each[finding] = _trees(whole["train"]["x"], y, whole[part]["x"], wanted)
        report("oracle", part, parts["train"], [(float(np.mean(list(each.values()))), each)])


def _pairs(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int8]]:
    """[n 2 d], without and with -> rows [2n d] and labels [2n]."""
    return x.reshape(-1, x.shape[2]), np.tile(np.array([0, 1], np.int8), len(x))


def _trees(x: NDArray[Any], y: NDArray[Any], tests: NDArray[Any], wanted: NDArray[Any]) -> float:
    trees = ExtraTreesClassifier(400, min_samples_leaf=2, class_weight="balanced", random_state=0)
    return float(roc_auc_score(wanted, trees.fit(x, y).predict_proba(tests)[:, 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of rendered scans; can be thrown away")
    parser.add_argument("--what", choices=["floors", "oracle", "curve"], nargs="+")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="key=value")
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--draws", type=int, default=3, help="independent sets of n-train scans")
    parser.add_argument("--n-test", type=int, default=400)
    parser.add_argument("--n-oracle", type=int, default=60, help="patients per finding")
    parser.add_argument("--n-oracle-test", type=int, help="of them to test on; default: as many")
    parser.add_argument("--labels", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--passes", type=int, default=10, help="of the network over its scans")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    preset = load_preset(given.preset, given.settings)
    start = time.process_time()
    with threadpool_limits(1):
        for what in given.what or ["floors", "oracle"]:
            if what == "curve":
                from learning_curve import curve

                curve(preset, given)
            else:
                {"floors": floors, "oracle": oracle}[what](preset, given)
    print(json.dumps({"cpu_s_without_workers": round(time.process_time() - start, 1)}))


if __name__ == "__main__":
    main()
