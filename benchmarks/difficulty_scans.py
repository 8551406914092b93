"""The scans of `difficulty.py`: rendered in shards, those that are there already are read."""

from __future__ import annotations

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

import headct.phantom
from headct.phantom.profile import DIFFUSE, DRAWN_FINDINGS, FINDINGS, PhantomPreset, load_site
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.phantom.scan import ScanSpec
from headct.volume.preprocessing import PRESETS

GRID, ORACLE_GRID = PRESETS["demo"], PRESETS["small"]
SHARD = 50
FIRST_PATIENT = {"train": 0, "inside": 400_000, "outside": 1_000_000}
UNPLACED = (*DIFFUSE, "midline_shift")
PLACED = tuple(f for f in DRAWN_FINDINGS if f not in UNPLACED)
REGION_EDGES_HU = np.array([-2000, -100, *range(-10, 90, 8), 130, 300, 700, 4000])

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
