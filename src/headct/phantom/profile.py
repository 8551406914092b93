"""What a phantom archive is made of: a site profile per hospital, and a preset of difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from headct.config import Config, builtin_names, load_recipe

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


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"the lower end {interval[0]} is above the upper end {interval[1]}")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lower and upper end of a uniform draw."""

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


def _positive(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] <= 0:
        raise ValueError("both ends must be above 0")
    return interval


def _not_negative(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] < 0:
        raise ValueError("neither end may be below 0")
    return interval


PositiveInterval = Annotated[Interval, AfterValidator(_positive)]
NotNegativeInterval = Annotated[Interval, AfterValidator(_not_negative)]


class Scanner(Config):
    """One CT scanner of a site and the protocol it runs."""

    manufacturer: str
    model: str
    kernel: str
    """Name of the reconstruction kernel, as its vendor writes it."""
    kvp: Literal[70, 80, 90, 100, 110, 120, 130, 135, 140] = 120


class SiteProfile(Config):
    """The scanners and habits of one hospital; defaults are those of RECIPE's ID column."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    """Short name, used in labels and folders."""
    scanners: tuple[Scanner, ...] = Field(min_length=1)
    """Each scan comes from one of them, with equal chance."""

    gain_sd: NotNegative = 0.012
    """Calibration gain: normal about 1 with this sd; or uniform, see `gain_range`."""
    gain_range: PositiveInterval | None = None
    """Where given, the gain is uniform in it."""
    offset_sd_hu: NotNegative = 1.0
    """HU, sd of the calibration offset."""
    offset_range_hu: Interval | None = None
    """HU; where given, the offset is uniform in it."""

    noise_sd_hu: NotNegativeInterval = (1.5, 3.5)
    """HU, sd of the noise in a voxel of (3.3 mm)^3; smaller voxels have more, at equal density."""
    correlated_noise_fraction: Fraction = 0.0
    """Share of scans whose noise is correlated over about two reference voxels."""

    blur_fraction: Fraction = 0.0
    """Share of scans with a blurring kernel."""
    sharpen_fraction: Fraction = 0.0
    """Share of scans with an edge-enhancing kernel."""
    kernel_mm: NotNegativeInterval = (0.9, 1.6)
    """mm, sd of the blur, or of the blur whose difference is added in sharpening."""

    cupping_hu: NotNegativeInterval = (0.0, 3.0)
    """HU of beam-hardening cupping between centre and rim."""
    streak_hu: NotNegativeInterval = (0.0, 7.0)
    """HU depth of the dark band between the petrous bones."""
    ghost_fraction: Fraction = 0.08
    """Share of scans in which the patient moved."""

    slice_thickness_mm: PositiveInterval = (1.0, 5.0)
    """mm, thickness of a reconstructed slice."""
    matrix: int = Field(default=192, ge=32, le=1024)
    """Rows and columns of a slice."""
    fov_mm: PositiveInterval = (230.0, 260.0)
    """mm, width of a slice."""
    tilted_fraction: Fraction = 0.0
    """Share of scans with a tilted gantry."""
    gantry_tilt_deg: Interval = (-20.0, 20.0)
    """Degrees of gantry tilt in tilted scans."""
    below_mm: NotNegativeInterval = (66.0, 84.0)
    """mm from the brain's centre to the lowest slice."""
    above_mm: NotNegativeInterval = (96.0, 108.0)
    """mm from the brain's centre to the highest slice."""

    tilt_sd_deg: NotNegative = 5.0
    """Degrees, sd of the head's nodding (about the left-right axis)."""
    turn_sd_deg: NotNegative = 2.5
    """Degrees, sd of the other two rotations."""
    shift_sd_mm: NotNegative = 4.0
    """mm, sd of the head's place in the scanner, per axis."""

    table_radius_mm: PositiveInterval = (98.0, 106.0)
    """mm, inner radius of the head holder."""
    table_thickness_mm: PositiveInterval = (3.0, 5.0)
    """mm, thickness of the holder."""
    table_hu: Interval = (-820.0, -760.0)
    """HU of the holder."""

    @model_validator(mode="after")
    def _possible(self) -> SiteProfile:
        if self.blur_fraction + self.sharpen_fraction > 1:
            raise ValueError("blur_fraction and sharpen_fraction together are above 1")
        if self.slice_thickness_mm[1] > 20:
            raise ValueError("slice_thickness_mm is above 20 mm")
        if max(map(abs, self.gantry_tilt_deg)) > 30:
            raise ValueError("gantry_tilt_deg is beyond 30 degrees")
        return self


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


class PhantomPreset(Config):
    """How large and how hard an archive is; defaults are the `base` preset."""

    sites: tuple[str, ...] = ("hospital-a", "hospital-b")
    """Site profiles: names of built-in ones, or paths of TOML files."""
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
    pool_grid: Literal["demo", "small", "base"] = "demo"
    """Canonical grid of the pool."""
    repeat_fraction: Fraction = 0.12
    """Share of patients with a second, later scan."""
    unknown_fraction: Fraction = 0.02
    """Share of labels that are left empty."""
    faults: bool = True
    """Plant series that are no head CT, and faulty files."""
    max_matrix: int = Field(default=512, ge=32, le=1024)
    """Rows and columns of a slice, at most: coarser than the sites' own saves time and disk."""
    min_slice_mm: NotNegative = 0.0
    """mm, slices are at least this thick."""

    rotation_factor: NotNegative = 1.0
    """The sites' rotation sds are multiplied by this."""
    shift_factor: NotNegative = 1.0
    """The sites' shift sd is multiplied by this."""
    noise_factor: NotNegative = 1.0
    """The sites' noise is multiplied by this."""
    scale_sd: float = Field(default=0.045, ge=0, le=0.1)
    """Sd of the size of a head along each axis."""
    deformation_mm: float = Field(default=2.5, ge=0, le=5)
    """mm, sd of the smooth deformation that makes a head individual."""
    severity: float = Field(default=1.0, gt=0, le=2)
    """Size and contrast of findings: severity is U(0, 1) times this, at most 1.2."""
    hu_variation: float = Field(default=1.0, ge=0, le=2)
    """Spread of the HU of grey and white matter and of blood among patients."""
    shift_label_mm: float = Field(default=4.0, gt=0, le=20)
    """mm at the septum from which midline shift is labelled."""
    prevalence: Prevalence = Prevalence()
    """How common each finding is."""


def load_site(site: str | Path) -> SiteProfile:
    """A built-in site profile by name, or one read from a TOML file.

    Raises:
        UsageError: no such profile, unknown keys or impossible values; all are listed.
    """
    return load_recipe(site, SiteProfile, builtin=SITES)


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
