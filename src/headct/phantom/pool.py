"""The unlabelled pool: scans rendered on the canonical grid, straight into a store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.reasons import Status
from headct.phantom.files import phantom_uid
from headct.phantom.plan import POOL_PATIENTS_FROM, archive_sites
from headct.phantom.profile import PhantomPreset
from headct.phantom.render import render_scan
from headct.phantom.scan import ScanSpec, canonical_affine, draw_scan
from headct.phantom.shortcut import with_shortcut
from headct.progress import tracking
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS
from headct.workers import run_in_order

SCANS_PER_JOB = 8


@dataclass(frozen=True)
class _Job:
    preset: PhantomPreset
    first: int
    last: int


PoolScan = tuple[NDArray[np.int16], dict[str, Any]]


def write_pool(preset: PhantomPreset, folder: Path, n_workers: int) -> int:
    """Render what the pool still lacks; returns the number of scans in it.

    Scan i is a pure function of the preset and i, and the store keeps them in that order: a pool
    that was interrupted goes on where it stopped and ends the same.
    """
    with StoreWriter(folder, PRESETS[preset.pool_grid]) as store:
        starts = range(len(store), preset.n_pool, SCANS_PER_JOB)
        tasks = [_Job(preset, i, min(i + SCANS_PER_JOB, preset.n_pool)) for i in starts]
        with tracking("pool", preset.n_pool) as tracker:
            tracker.advance(len(store))
            for scans in run_in_order(_render, tasks, n_workers if n_workers > 1 else 0):
                for hu, row in scans:
                    store.add([item_of(row)], [(hu, row)])
                tracker.advance(len(scans))
        return len(store)


def _render(job: _Job) -> list[PoolScan]:
    return [pool_scan(job.preset, i) for i in range(job.first, job.last)]


def pool_scan(preset: PhantomPreset, i: int) -> PoolScan:
    """Scan i of the pool on the canonical grid, and its manifest row."""
    grid = PRESETS[preset.pool_grid]
    site = archive_sites(preset)[0]
    spec = draw_scan(preset, site, preset.seed, POOL_PATIENTS_FROM + i)
    spec = with_shortcut(spec, preset, site, "pool")
    affine = canonical_affine(spec, grid)
    rendered = render_scan(spec, grid.shape_zyx, affine, masks=False, as_ingested=True)
    uid = phantom_uid(preset.seed, spec.patient, spec.scan)
    return rendered.hu, manifest_row(preset, spec, affine, uid)


def manifest_row(
    preset: PhantomPreset, spec: ScanSpec, affine: NDArray[np.float64], uid: str
) -> dict[str, Any]:
    """A store's row of a scan; ids are pseudonyms as everywhere, under a key that the seed gives.

    Args:
        preset: its seed gives the key.
        spec: what was rendered.
        affine: of the canonical grid.
        uid: of the study.
    """
    scanner = spec.acquisition
    name = _pseudonyms(preset.seed)
    return {
        "scan_id": name.scan_id(uid),
        "patient_id": name.patient_id(str(spec.patient)),
        "study_id": name.study_id(uid),
        "series_id": name.series_id(uid),
        "status": Status.ACCEPTED.value,
        "flags": [],
        "site": spec.site,
        "modality": "CT",
        "manufacturer": scanner.manufacturer,
        "model": scanner.model,
        "kernel": scanner.kernel,
        "kvp": float(scanner.kvp),
        "slice_thickness_mm": scanner.slice_thickness_mm,
        "age_years": float(spec.anatomy.age_years),
        "sex": spec.anatomy.sex,
        "affine_zyx": affine,
        "provenance": '[{"step": "phantom"}]',
    }


def _pseudonyms(seed: int) -> Pseudonymizer:
    return Pseudonymizer(hashlib.sha256(f"headct phantom pool {seed}".encode()).digest())


def item_of(row: dict[str, Any]) -> dict[str, Any]:
    """The line of items.jsonl, as ingest writes it for an accepted series."""
    return {
        "source": row["series_id"],
        "series": row["series_id"],
        "study": row["study_id"],
        "status": row["status"],
        "reason": None,
        "message": "",
        "scan_id": row["scan_id"],
        "flags": [],
        "n_files": 0,
    }
