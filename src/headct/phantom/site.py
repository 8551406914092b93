"""Site profiles: the scanners and habits of one hospital, each value with the range it may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from headct.config import Config

VERTEX_MM, FLOOR_MM = 83.0, -60.0
"""Height of the scalp's top and of the posterior fossa's floor over the brain's centre."""
LEAST_MM = 20.0
"""A scan covers at least this much."""

Kvp = Literal[70, 80, 90, 100, 110, 120, 130, 135, 140]
"""Tube voltages that head scanners offer."""


def within(low: float, high: float, unit: str = "") -> AfterValidator:
    """A check that both ends of an interval are in order and in the range `low` to `high`."""
    allowed = f"{low:g} to {high:g} {unit}".strip()

    def check(interval: tuple[float, float]) -> tuple[float, float]:
        first, last = interval
        if first > last:
            raise ValueError(f"the lower end {first:g} is above the upper end {last:g}")
        if not low <= first <= last <= high:
            raise ValueError(f"[{first:g}, {last:g}] is outside what is possible: {allowed}")
        return interval

    return AfterValidator(check)


Interval = tuple[float, float]
"""Lower and upper end of a uniform draw."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class Scanner(Config):
    """One CT scanner of a site and the protocol it runs."""

    manufacturer: str
    model: str
    kernel: str
    """Name of the reconstruction kernel, as its vendor writes it."""
    bone: bool = False
    """The kernel is one for bone: edges overshoot, noise is fine-grained and strong."""
    kvp: Kvp = 120
    """Tube voltage; the lower, the denser are bone and iodine, and the noisier is the scan."""
    mas: Annotated[Interval, within(20, 1000, "mAs")] = (250.0, 250.0)
    """Tube current times time; noise goes with 1 / sqrt(mAs), 250 being the site's noise."""
    share: float = Field(default=1.0, gt=0, le=1000)
    """How often it is used, relative to the site's other scanners."""


class SiteProfile(Config):
    """The scanners and habits of one hospital; defaults are those of RECIPE's ID column."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    """Short name, used in labels and folders."""
    scanners: tuple[Scanner, ...] = Field(min_length=1)
    """Each scan comes from one of them, as often as its `share` says."""

    gain_sd: float = Field(default=0.012, ge=0, le=0.1)
    """Calibration gain: normal about 1 with this sd; or uniform, see `gain_range`."""
    gain_range: Annotated[Interval, within(0.8, 1.2)] | None = None
    """Where given, the gain is uniform in it."""
    offset_sd_hu: float = Field(default=1.0, ge=0, le=20)
    """HU, sd of the calibration offset."""
    offset_range_hu: Annotated[Interval, within(-40, 40, "HU")] | None = None
    """HU; where given, the offset is uniform in it."""

    noise_sd_hu: Annotated[Interval, within(0, 50, "HU")] = (1.5, 3.5)
    """HU, sd of the noise in a voxel of (3.3 mm)^3; smaller voxels have more, at equal density."""
    correlated_noise_fraction: Fraction = 0.0
    """Share of scans whose noise is correlated over about two reference voxels."""

    blur_fraction: Fraction = 0.0
    """Share of scans with a blurring kernel."""
    sharpen_fraction: Fraction = 0.0
    """Share of scans with an edge-enhancing kernel."""
    kernel_mm: Annotated[Interval, within(0, 5, "mm")] = (0.9, 1.6)
    """mm, sd of the blur, or of the blur whose difference is added in sharpening."""
    bone_overshoot: Annotated[Interval, within(0, 5)] = (1.4, 2.6)
    """Share of the difference to the blurred picture that a bone kernel adds; soft ones add 0.8."""
    bone_noise_factor: Annotated[Interval, within(1, 10)] = (1.8, 3.0)
    """A bone kernel's noise, relative to a soft one's."""

    cupping_hu: Annotated[Interval, within(0, 40, "HU")] = (0.0, 3.0)
    """HU of beam-hardening cupping between centre and rim."""
    streak_hu: Annotated[Interval, within(0, 100, "HU")] = (0.0, 7.0)
    """HU depth of the dark band between the petrous bones."""
    ghost_fraction: Fraction = 0.08
    """Share of scans in which the patient moved."""

    contrast_fraction: Fraction = 0.0
    """Share of scans after contrast medium."""
    contrast_hu: Annotated[Interval, within(10, 600, "HU")] = (50.0, 130.0)
    """HU that iodine adds to blood at 120 kVp; 250 to 400 is an angiography."""
    contrast_told_fraction: Fraction = 0.7
    """Share of scans after contrast medium whose header says so, by one of three elements."""
    dental_fraction: Fraction = 0.0
    """Share of patients with metal in their teeth; it is seen where scans reach them."""
    clip_fraction: Fraction = 0.0
    """Share of patients with an aneurysm clip or coils."""
    metal_streak_hu: Annotated[Interval, within(0, 1000, "HU")] = (15.0, 90.0)
    """HU of the streaks 10 mm away from metal."""
    vertex_cut_fraction: Fraction = 0.0
    """Share of scans that end below the vertex."""
    base_cut_fraction: Fraction = 0.0
    """Share of scans that begin above the skull base."""
    cut_mm: Annotated[Interval, within(0, 80, "mm")] = (15.0, 40.0)
    """mm of the head that are missing there: under the vertex, or above the floor of the skull."""

    slice_thickness_mm: Annotated[Interval, within(0.3, 20, "mm")] = (1.0, 5.0)
    """mm, thickness of a reconstructed slice."""
    matrix: int = Field(default=192, ge=32, le=1024)
    """Rows and columns of a slice."""
    fov_mm: Annotated[Interval, within(100, 500, "mm")] = (230.0, 260.0)
    """mm, width of a slice."""
    tilted_fraction: Fraction = 0.0
    """Share of scans with a tilted gantry."""
    gantry_tilt_deg: Annotated[Interval, within(-30, 30, "degrees")] = (-20.0, 20.0)
    """Degrees of gantry tilt in tilted scans."""
    below_mm: Annotated[Interval, within(0, 200, "mm")] = (66.0, 84.0)
    """mm from the brain's centre to the lowest slice."""
    above_mm: Annotated[Interval, within(20, 200, "mm")] = (96.0, 108.0)
    """mm from the brain's centre to the highest slice."""

    tilt_sd_deg: float = Field(default=5.0, ge=0, le=25)
    """Degrees, sd of the head's nodding (about the left-right axis)."""
    turn_sd_deg: float = Field(default=2.5, ge=0, le=25)
    """Degrees, sd of the other two rotations."""
    shift_sd_mm: float = Field(default=4.0, ge=0, le=50)
    """mm, sd of the head's place in the scanner, per axis."""

    table_radius_mm: Annotated[Interval, within(50, 250, "mm")] = (98.0, 106.0)
    """mm, inner radius of the head holder."""
    table_thickness_mm: Annotated[Interval, within(0.5, 40, "mm")] = (3.0, 5.0)
    """mm, thickness of the holder."""
    table_hu: Annotated[Interval, within(-1000, 1000, "HU")] = (-820.0, -760.0)
    """HU of the holder."""

    @model_validator(mode="after")
    def _possible(self) -> SiteProfile:
        if self.blur_fraction + self.sharpen_fraction > 1:
            raise ValueError("blur_fraction and sharpen_fraction together are above 1")
        if self.vertex_cut_fraction + self.base_cut_fraction > 1:
            raise ValueError("vertex_cut_fraction and base_cut_fraction together are above 1")
        below, above = self.below_mm[0], self.above_mm[0]
        missing = self.cut_mm[1] + 4 * self.shift_sd_mm
        if self.vertex_cut_fraction and below + VERTEX_MM - missing < LEAST_MM:
            raise ValueError("below_mm, cut_mm and shift_sd_mm may leave nothing of a cut scan")
        if self.base_cut_fraction and above - FLOOR_MM - missing < LEAST_MM:
            raise ValueError("above_mm, cut_mm and shift_sd_mm may leave nothing of a cut scan")
        return self
