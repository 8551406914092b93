"""Plant all odd inputs into an archive, each in a folder and of a patient of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from headct.phantom.decoys import HeadSeries
from headct.phantom.files import phantom_uid
from headct.phantom.odd import ODD
from headct.phantom.plan import archive_sites, plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.rows import Row
from headct.phantom.study import rendered_series
from headct.progress import tracking
from headct.workers import run_in_order

HEAD = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
"""Its first scan is the head that odd inputs are made from: what becomes of some of them depends on
how many slices there are."""


@dataclass(frozen=True)
class OddJob:
    """One odd input to write, the `place`-th."""

    place: int
    seed: int
    site: str
    archive: str

    @property
    def path(self) -> str:
        """Folder in the archive; tells nothing of what is in it."""
        return f"dicom/{self.site}/ODD{self.place + 1:04d}"


def plant_odd(preset: PhantomPreset, archive: Path, n_workers: int) -> list[Row]:
    """Write every odd input; rows of truth/planted.csv, one for each thing that ingest must say.

    `A|B` in a row: either will do.
    """
    sites = [site.name for site in archive_sites(preset)]
    jobs = [OddJob(n, preset.seed, sites[n % len(sites)], str(archive)) for n in range(len(ODD))]
    rows = []
    with tracking("odd inputs", len(jobs), "inputs") as tracker:
        for found in run_in_order(_write, jobs, n_workers if n_workers > 1 else 0):
            rows += found
            tracker.advance()
    return rows


def _write(job: OddJob) -> list[Row]:
    odd, series = ODD[job.place], odd_series(job.seed, job.place)
    folder = Path(job.archive) / job.path
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    odd.write(series, folder)
    about = {"what": odd.name, "site": job.site, "study_uid": series.header.study_uid}
    return [about | {"series_uid": "", "path": job.path} | _outcome(v) for v in odd.verdicts]


def _outcome(verdict: str) -> Row:
    """`refused:a|refused:b` -> status refused, reason a|b."""
    choices = [choice.partition(":") for choice in verdict.split("|")]
    named = (dict.fromkeys(values) for values in zip(*choices, strict=True))
    status, _, reason = ("|".join(values) for values in named)
    return {"status": status, "reason": reason}


def odd_series(seed: int, place: int) -> HeadSeries:
    """The head with noise and names that no other odd input has."""
    series = _head()
    noise = np.random.default_rng([seed, place, 6]).integers(-3, 4, series.hu.shape)
    study_uid = phantom_uid(seed, "odd", place)
    header = replace(
        series.header,
        patient_name=f"Odd^Number{place + 1}",
        patient_id=f"PX{place + 1:07d}",
        study_uid=study_uid,
        series_uid=phantom_uid(study_uid, "axial"),
        accession=f"X{place + 1:06d}",
    )
    hu = np.clip(series.hu + noise, -1024, 3071).astype(np.int16)
    return replace(series, hu=hu, header=header)


@lru_cache(maxsize=1)
def _head() -> HeadSeries:
    return rendered_series(HEAD, plan_studies(HEAD)[0])[0]
