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
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

import headct.phantom
from headct.adapt.floors import blocks, histogram
from headct.adapt.logistic import fit_logistic
from headct.phantom.profile import (
    DIFFUSE,
    DRAWN_FINDINGS,
    FINDINGS,
    PhantomPreset,
    load_preset,
    load_site,
)
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.phantom.scan import ScanSpec
from headct.volume.preprocessing import PRESETS

GRID, ORACLE_GRID = PRESETS["demo"], PRESETS["small"]
SHARD = 50
FIRST_PATIENT = {"train": 0, "inside": 400_000, "outside": 1_000_000}
UNPLACED = (*DIFFUSE, "midline_shift")
PLACED = tuple(f for f in DRAWN_FINDINGS if f not in UNPLACED)
REGION_EDGES_HU = np.array([-2000, -100, *range(-10, 90, 8), 130, 300, 700, 4000])
STRENGTHS = 10.0 ** np.arange(-4, 2)
FOLDS = 5
N_MEASURED = 1500

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """One shard of one part."""

    kind: str
    preset: PhantomPreset
    part: str
    number: int
    n: int
    folder: str

    @property
    def path(self) -> Path:
        return Path(self.folder) / f"{self.kind}-{self.part}-{self.number:04d}.npz"


def draw(job: Job, patient: int, findings: dict[str, bool] | None = None) -> ScanSpec:
    """A scan of a part; with exactly these findings, where wanted."""
    site = load_site(job.preset.sites[1 if job.part == "outside" else 0])
    number = FIRST_PATIENT[job.part] + patient
    return draw_scan(job.preset, site, job.preset.seed, number, findings=findings)


def coarse_scan(job: Job, patient: int) -> Arrays:
    spec = draw(job, patient)
    affine = canonical_affine(spec, GRID)
    scan = render_scan(spec, GRID.shape_zyx, affine, masks=False, as_ingested=True)
    return {"hu": scan.hu, "y": np.array([scan.truth["labels"][f] for f in FINDINGS], np.int8)}


def oracle_scan(job: Job, patient: int) -> Arrays:
    """One finding in one patient, and the same region without it: features [2 d]."""
    finding = PLACED[patient % len(PLACED)]
    with_it, without = draw(job, patient, {finding: True}), draw(job, patient, {})
    affine, shape = canonical_affine(with_it, ORACLE_GRID), ORACLE_GRID.shape_zyx
    ill = render_scan(with_it, shape, affine, as_ingested=True)
    well = render_scan(without, shape, affine, masks=False, as_ingested=True)
    mask = ill.masks.get(finding, np.zeros(shape, np.bool_))
    return {"x": np.stack([region_features(scan.hu, mask) for scan in (well, ill)])}


def region_features(hu: NDArray[np.int16], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """HU in a region, its mirror image and its rim; zeros where the region has no voxel."""
    rim = binary_dilation(mask, iterations=3) & ~binary_dilation(mask)
    rows = []
    for part in (mask, mask[:, :, ::-1], rim):
        values = hu[part].astype(np.float32) if mask.any() else np.zeros(1, np.float32)
        share = np.histogram(values, REGION_EDGES_HU)[0] / max(1, len(values))
        clipped = np.clip(values, -100, 1500)
        middle = np.percentile(clipped, (10, 50, 90)) if len(values) else np.zeros(3)
        rows.append(np.concatenate([middle, [clipped.std() if len(values) else 0], share]))
    here, mirror, around = rows
    return np.concatenate([here, here - mirror, here - around]).astype(np.float32)


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


SCANS: dict[str, Callable[[Job, int], Arrays]] = {"scans": coarse_scan, "oracle": oracle_scan}


def make(job: Job) -> None:
    """Render a shard, whole or not at all."""
    first = job.number * SHARD
    found = [SCANS[job.kind](job, first + i) for i in range(job.n)]
    arrays = {name: np.stack([scan[name] for scan in found]) for name in found[0]}
    aside = job.path.with_suffix(".part.npz")
    np.savez(aside, **arrays)
    aside.replace(job.path)


def folder_of(preset: PhantomPreset, work: Path) -> Path:
    """Another one for another preset, other sites and another version of the renderer."""
    sources = sorted(Path(headct.phantom.__file__).parent.rglob("*.[pt]*"))
    text = b"".join(path.read_bytes() for path in sources if path.suffix in (".py", ".toml"))
    return work / f"{zlib.crc32(preset.model_dump_json().encode() + text):08x}"


def collect(
    kind: str, part: str, n: int, preset: PhantomPreset, work: Path, n_jobs: int
) -> Iterator[Arrays]:
    """The shards of a part; those that are missing are made."""
    folder = folder_of(preset, work)
    folder.mkdir(parents=True, exist_ok=True)
    whole, rest = divmod(n, SHARD)
    sizes = [SHARD] * whole + ([rest] if rest else [])
    jobs = [Job(kind, preset, part, i, size, str(folder)) for i, size in enumerate(sizes)]
    missing = [job for job in jobs if not job.path.exists()]
    if missing:
        with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(make, missing))
    for job in jobs:
        with np.load(job.path) as saved:
            yield {name: saved[name][: job.n] for name in saved.files}


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
