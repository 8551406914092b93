"""What an archive holds, before anything is rendered: patients, studies, splits, planted faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from itertools import count
from typing import Literal

import numpy as np

from headct.errors import UsageError
from headct.phantom.dicom import TransferSyntax
from headct.phantom.faults import FAULTS
from headct.phantom.files import phantom_uid
from headct.phantom.patient import scan_day
from headct.phantom.presence import require_prevalence
from headct.phantom.profile import PhantomPreset, named_sites, site_for
from headct.phantom.shortcut import require_shortcut
from headct.phantom.site import SiteProfile

Split = Literal["train", "tune", "test"]
Layout = Literal["plain", "spread", "mixed"]

PATIENTS_PER_SITE = 1_000_000
POOL_PATIENTS_FROM = 500_000
FAULTY_PATIENTS_FROM = 900_000
"""Patients of a site are numbered; the labelled, the pool's and the faulty never share one."""

MOST_SCANS = 4
"""Of one patient."""

SYNTAX_OF_REST: dict[int, TransferSyntax] = {7: "rle", 15: "jpeg2000", 23: "deflated"}
LAYOUT_OF_REST: dict[int, Layout] = {3: "spread", 11: "mixed"}
"""Every 40th study is stored in this way, every 16th lies in the folders like that."""

_FIRST_NAMES: tuple[str, ...] = (
    "Amber",
    "Basil",
    "Clover",
    "Flint",
    "Hazel",
    "Juniper",
    "Laurel",
    "Maple",
)
_FIRST_NAMES += ("Olive", "Pearl", "Reed", "Rowan", "Sage", "Sorrel", "Wren", "Yarrow")
_LAST_NAMES: tuple[str, ...] = (
    "Alder",
    "Basalt",
    "Cobalt",
    "Dolomite",
    "Feldspar",
    "Gneiss",
    "Hornbeam",
)
_LAST_NAMES += ("Larch", "Marble", "Obsidian", "Quartz", "Spruce", "Tamarack", "Zircon")


@dataclass(frozen=True)
class Patient:
    """A person who does not exist."""

    number: int
    name: str
    patient_id: str
    first_day: date


@dataclass(frozen=True)
class Study:
    """One planned study with one head CT series.

    Attributes:
        index: among all studies of the archive.
        site_index: of `preset.sites`; the first is the internal one.
        scan: 0 for a patient's first scan, 1 for the second, and so on.
        split: None for a faulty study, which has no label.
        fault: name of what is planted in it, if anything.
        rescan: made on the day of the same scan at the patient's own site, by another scanner.
    """

    index: int
    site: str
    site_index: int
    patient: Patient
    scan: int
    day: date
    time: str
    split: Split | None
    fault: str | None
    layout: Layout
    transfer_syntax: TransferSyntax
    rescan: bool = False

    @property
    def home_index(self) -> int:
        """Of the patient's own site."""
        return self.patient.number // PATIENTS_PER_SITE

    @property
    def folder(self) -> str:
        """Of the study, under ARCHIVE/dicom; names nobody."""
        return f"{self.site}/ST{self.index + 1:05d}"


def study_uid(seed: int, study: Study) -> str:
    """StudyInstanceUID of a study."""
    again = ("rescan",) if study.rescan else ()
    return phantom_uid(seed, study.patient.number, study.scan, *again)


def plan_studies(preset: PhantomPreset) -> list[Study]:
    """All studies: labelled ones by site and split, rescans, then the planted ones.

    Raises:
        UsageError: see `archive_sites` and `require_prevalence`; or more scans than patients have
            numbers.
    """
    _require_numbers(preset)
    require_prevalence(preset.prevalence)
    sites = [site.name for site in archive_sites(preset)]
    index = count()
    studies = [
        study
        for site_index, site in enumerate(sites)
        for study in _labelled(preset, site, site_index, index)
    ]
    studies += [_rescan(preset, study, next(index)) for study in _rescanned(preset, studies)]
    planted = preset.faults and preset.output == "dicom"
    return studies + (_faulty(preset, sites, index) if planted else [])


def _require_numbers(preset: PhantomPreset) -> None:
    """Labelled patients and those of the pool are others only while neither run out of numbers."""
    n_pool = FAULTY_PATIENTS_FROM - POOL_PATIENTS_FROM
    counts = {
        "n_train + n_tune + n_test": (
            preset.n_train + preset.n_tune + preset.n_test,
            POOL_PATIENTS_FROM,
        ),
        "n_external": (preset.n_external, POOL_PATIENTS_FROM),
        "n_pool": (preset.n_pool, n_pool),
    }
    for key, (n, most) in counts.items():
        if n > most:
            raise UsageError(
                f"{key}: {n} scans are more than an archive has patients for",
                remedy=f"at most {most}; make another archive with another seed for the rest",
            )


def _rescanned(preset: PhantomPreset, studies: list[Study]) -> Iterator[Study]:
    for study in studies:
        rng = np.random.default_rng([preset.seed, study.patient.number, study.scan, 5])
        internal = study.site_index == 0 and study.split == "test"
        if internal and rng.random() < preset.rescanned_fraction:
            yield study


def _rescan(preset: PhantomPreset, study: Study, index: int) -> Study:
    hour = min(int(study.time[:2]) + 1, 23)
    return replace(
        study,
        index=index,
        site=archive_sites(preset)[1].name,
        site_index=1,
        time=f"{hour:02d}{study.time[2:]}",
        layout="plain",
        transfer_syntax="explicit",
        rescan=True,
    )


@lru_cache(maxsize=4)
def archive_sites(preset: PhantomPreset) -> tuple[SiteProfile, ...]:
    """The site profiles, with slices as coarse as the preset asks for.

    Raises:
        UsageError: a site, the shortcut or the rescans cannot be as the preset says.
    """
    named_sites(preset)
    sites = tuple(site_for(preset, site) for site in preset.sites)
    require_shortcut(preset, sites)
    if preset.rescanned_fraction and len(sites) < 2:
        raise UsageError("rescanned_fraction needs a second site", remedy="name two in sites")
    return sites


def _labelled(
    preset: PhantomPreset, site: str, site_index: int, index: Iterator[int]
) -> Iterator[Study]:
    internal: dict[Split, int] = {
        "train": preset.n_train,
        "tune": preset.n_tune,
        "test": preset.n_test,
    }
    sizes: dict[Split, int] = {"test": preset.n_external} if site_index else internal
    patients = count(site_index * PATIENTS_PER_SITE)
    for split, size in sizes.items():
        left = size
        while left:
            number = next(patients)
            rng = np.random.default_rng([preset.seed, number, 1])
            n_scans = 1
            while n_scans < min(left, MOST_SCANS) and rng.random() < preset.repeat_fraction:
                n_scans += 1
            for scan in range(n_scans):
                yield _study(preset, site, site_index, next(index), number, scan, split)
            left -= n_scans


def _faulty(preset: PhantomPreset, sites: list[str], index: Iterator[int]) -> list[Study]:
    studies = []
    for place, fault in enumerate(FAULTS):
        site_index = place % len(sites)
        number = site_index * PATIENTS_PER_SITE + FAULTY_PATIENTS_FROM + place
        site = sites[site_index]
        studies.append(_study(preset, site, site_index, next(index), number, 0, None, fault))
    return studies


def _study(
    preset: PhantomPreset,
    site: str,
    site_index: int,
    index: int,
    number: int,
    scan: int,
    split: Split | None,
    fault: str | None = None,
) -> Study:
    rng = np.random.default_rng([preset.seed, number, 2])
    name = f"{rng.choice(_LAST_NAMES)}^{rng.choice(_FIRST_NAMES)}"
    first_day = date(2016, 1, 4) + timedelta(days=int(rng.integers(2500)))
    later = timedelta(days=scan_day(preset.seed, number, scan))
    hour, minute, second = rng.integers([[24, 60, 60]] * MOST_SCANS)[scan]
    return Study(
        index=index,
        site=site,
        site_index=site_index,
        patient=Patient(number, name, f"PH{number:07d}", first_day),
        scan=scan,
        day=first_day + later,
        time=f"{hour:02d}{minute:02d}{second:02d}",
        split=split,
        fault=fault,
        layout="plain" if fault else LAYOUT_OF_REST.get(index % 16, "plain"),
        transfer_syntax="explicit" if fault else SYNTAX_OF_REST.get(index % 40, "explicit"),
    )
