"""How large and how hard a phantom archive is: a preset, which names its site profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from headct.config import Config, builtin_names, load_recipe
from headct.errors import UsageError
from headct.phantom.site import Fraction, SiteProfile

PRESETS = "headct.phantom.presets"
SITES = "headct.phantom.sites"

Finding = Literal[
    "edh",
    "sdh",
    "sah",
    "iph",
    "ivh",
    "infarct",
    "mass",
    "hydrocephalus",
    "midline_shift",
    "fracture",
    "atrophy",
    "oedema",
]
DrawnFinding = Literal[
    "edh",
    "sdh",
    "sah",
    "iph",
    "ivh",
    "infarct",
    "mass",
    "hydrocephalus",
    "fracture",
    "atrophy",
    "oedema",
]
"""Findings that have a prevalence; midline shift follows from the others."""

FINDINGS: tuple[Finding, ...] = get_args(Finding)
"""Column names of labels, in their order."""

DRAWN_FINDINGS: tuple[DrawnFinding, ...] = get_args(DrawnFinding)

DIFFUSE: tuple[DrawnFinding, ...] = ("hydrocephalus", "atrophy", "oedema")
"""Findings of the whole brain, which have no place."""


Output = Literal["dicom", "nifti", "store"]
"""What labelled scans are written as."""

Where = Literal["train", "tune", "test", "pool"]
"""Parts of an archive: the splits of the labelled scans, and the unlabelled pool."""

NotNegative = Annotated[float, Field(ge=0)]


class Prevalence(Config):
    """Share of patients with each finding, alone or along with others.

    Midline shift is not drawn: it follows from the others.
    """

    edh: Fraction = 0.09
    sdh: Fraction = 0.12
    sah: Fraction = 0.11
    iph: Fraction = 0.12
    ivh: Fraction = 0.10
    infarct: Fraction = 0.11
    mass: Fraction = 0.10
    hydrocephalus: Fraction = 0.10
    fracture: Fraction = 0.10
    atrophy: Fraction = 0.12
    oedema: Fraction = 0.08


class Shortcut(Config):
    """Acquisition that goes with a finding; see `shortcut`. One of `kernel` and `site`."""

    finding: Finding
    """Patients with this finding get the marked protocol more often."""
    strength: Fraction
    """Share of the marked among those with the finding, minus that among the others."""
    kernel: str | None = None
    """The mark: scanners of the own site with this reconstruction kernel."""
    site: str | None = None
    """The mark: scanners and habits of another site, by name or TOML file."""
    splits: tuple[Where, ...] = ("train", "tune")
    """Where the protocol goes with the finding; elsewhere it does not."""

    @model_validator(mode="after")
    def _one_mark(self) -> Shortcut:
        if (self.kernel is None) == (self.site is None):
            raise ValueError("give kernel or site, one of them")
        return self


class PhantomPreset(Config):
    """How large and how hard an archive is.

    Defaults are those of no preset: sites as their profiles say, lesions as large as in BHSD.
    """

    sites: tuple[str, ...] = Field(default=("hospital-a", "hospital-b"), min_length=1)
    """Site profiles: names of built-in ones, or paths of TOML files; no two of one name."""
    seed: int = Field(default=0, ge=0)
    """Everything is drawn from it: the same seed gives the same archive, byte for byte."""
    n_train: int = Field(default=300, ge=0)
    """Labelled scans of the first site to train on."""
    n_tune: int = Field(default=60, ge=0)
    """Labelled scans of the first site to choose settings on."""
    n_test: int = Field(default=250, ge=0)
    """Labelled scans of the first site to test on."""
    n_external: int = Field(default=250, ge=0)
    """Labelled scans of each other site, all to test on."""
    n_pool: int = Field(default=0, ge=0)
    """Unlabelled scans of the first site, rendered straight into a store."""
    output: Output = "dicom"
    """Labelled scans as DICOM series, as NIfTI files, or rendered on the canonical grid straight
    into a store. Faults are files of a DICOM archive and are planted in that alone."""
    pool_grid: Literal["demo", "small", "base"] = "demo"
    """Canonical grid of the pool, and of labelled scans in a store."""
    repeat_fraction: Fraction = 0.12
    """Share of patients with a second, later scan; of those with a third, and with a fourth."""
    rescanned_fraction: Fraction = 0.0
    """Share of the first site's test scans that are made once more on the same day by a scanner of
    the second site: the same head and findings, another protocol."""
    shortcut: Shortcut | None = None
    """Where given, protocols go with a finding."""
    unknown_fraction: Fraction = 0.02
    """Share of labels that are left empty."""
    faults: bool | Literal["all"] = True
    """Plant series that are no head CT, and faulty files; `all`: every odd input of
    `headct.phantom.odd`, too, some of which file managers do not like."""
    max_matrix: int = Field(default=512, ge=32, le=1024)
    """Rows and columns of a slice, at most: coarser than the sites' own saves time and disk."""
    min_slice_mm: float = Field(default=0.0, ge=0, le=20)
    """mm, slices are at least this thick."""

    rotation_factor: NotNegative = 1.0
    """The sites' rotation sds are multiplied by this."""
    shift_factor: NotNegative = 1.0
    """The sites' shift sd is multiplied by this."""
    noise_factor: NotNegative = 1.0
    """The sites' noise is multiplied by this."""
    calibration_factor: NotNegative = 1.0
    """The sites' sds of calibration gain and offset are multiplied by this."""
    scale_sd: float = Field(default=0.045, ge=0, le=0.1)
    """Sd of the size of a head along each axis."""
    deformation_mm: float = Field(default=2.5, ge=0, le=5)
    """mm, sd of the smooth deformation that makes a head individual."""
    severity: float = Field(default=1.0, gt=0, le=2)
    """Size and contrast of lesions: severity, a quantile, is U(0, 1) to the power of 1 over the
    square of this."""
    diffuse_severity: float = Field(default=1.0, gt=0, le=2)
    """The same of hydrocephalus, atrophy and oedema, which change the whole brain."""
    hu_variation: float = Field(default=1.0, ge=0, le=2)
    """Spread of the HU of grey and white matter and of blood among patients."""
    shift_label_mm: float = Field(default=4.0, gt=0, le=20)
    """mm at the septum from which midline shift is labelled."""
    prevalence: Prevalence = Prevalence()
    """How common each finding is."""


def named_sites(preset: PhantomPreset) -> tuple[SiteProfile, ...]:
    """The profiles that a preset names, as they were written: its sites, and that of a shortcut.

    Raises:
        UsageError: see `load_site`; or two of them have one name, so that labels and folders could
            not tell them apart.
    """
    profiles = [load_site(site) for site in preset.sites]
    if preset.shortcut is not None and preset.shortcut.site is not None:
        mark = load_site(preset.shortcut.site)
        profiles += [] if mark in profiles else [mark]
    names = [profile.name for profile in profiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"sites: two profiles have the name {', '.join(map(repr, twice))}",
            remedy="give each site profile a name of its own (its key `name`)",
        )
    return tuple(profiles)


def load_site(site: str | Path) -> SiteProfile:
    """A built-in site profile by name, or one read from a TOML file.

    Raises:
        UsageError: no such profile, unknown keys or impossible values; all are listed.
    """
    return load_recipe(site, SiteProfile, builtin=SITES)


def site_for(preset: PhantomPreset, site: str | Path) -> SiteProfile:
    """A site profile with slices and matrix as coarse as the preset asks for.

    Raises:
        UsageError: see `load_site`.
    """
    profile = load_site(site)
    thin, thick = (max(mm, preset.min_slice_mm) for mm in profile.slice_thickness_mm)
    matrix = min(profile.matrix, preset.max_matrix)
    return profile.model_copy(update={"matrix": matrix, "slice_thickness_mm": (thin, thick)})


def load_preset(preset: str | Path, overrides: Sequence[str] = ()) -> PhantomPreset:
    """A built-in preset by name or a TOML file, with `key=value` overrides.

    Raises:
        UsageError: no such preset, unknown finding, prevalence above 1, or other bad values.
    """
    return load_recipe(preset, PhantomPreset, overrides, builtin=PRESETS)


def preset_names() -> list[str]:
    """Names of the presets that come with headct."""
    return builtin_names(PRESETS)


def site_names() -> list[str]:
    """Names of the site profiles that come with headct."""
    return builtin_names(SITES)
