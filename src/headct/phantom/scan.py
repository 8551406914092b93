"""ScanSpec: all that is known of one synthetic scan before it is rendered.

A pure function of preset, site, seed, patient and scan: the patient's head and findings depend on
(seed, patient) alone, so that one person can be seen by two scanners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headct.phantom.acquisition import Acquisition, draw_acquisition
from headct.phantom.anatomy import VAULT_RADII_MM, Anatomy, Brain, draw_anatomy
from headct.phantom.fields import Xyz
from headct.phantom.findings import (
    Fracture,
    Lesion,
    MassEffect,
    midline_shift_mm,
)
from headct.phantom.metal import RAYS, Implant, Streak, draw_implants
from headct.phantom.patient import draw_findings, scan_day
from headct.phantom.profile import PhantomPreset
from headct.phantom.site import SiteProfile
from headct.volume.preprocessing import Preprocessing

ANATOMY, ACQUISITION, METAL = 11, 13, 14
"""Last word of the seeds of the independent draws."""


@dataclass(frozen=True)
class ScanSpec:
    """One scan to render.

    Attributes:
        days: since the patient's first scan.
        shift_label_mm: midline shift is labelled from here.
        mirror: render the mirror image of everything, noise included.
    """

    seed: int
    patient: int
    scan: int
    site: str
    days: float
    anatomy: Anatomy
    lesions: tuple[Lesion, ...]
    acquisition: Acquisition
    shift_label_mm: float
    implants: tuple[Implant, ...] = ()
    mirror: bool = False

    @property
    def mass_effects(self) -> tuple[MassEffect, ...]:
        """All displacements of the brain."""
        return tuple(effect for lesion in self.lesions for effect in lesion.mass_effect())

    @property
    def midline_shift_mm(self) -> float:
        """Shift of the septum, positive to the right."""
        return midline_shift_mm(self.mass_effects) * (-1 if self.mirror else 1)

    @property
    def brain(self) -> Brain:
        """The brain, changed by diffuse findings."""
        brain = self.anatomy.brain
        for lesion in self.lesions:
            brain = lesion.applied(brain)
        return brain

    @property
    def streaks(self) -> tuple[Streak, ...]:
        """Where metal lies in the scanner, and how its streaks run."""
        a, anatomy = self.acquisition, self.anatomy
        rng = np.random.default_rng(a.noise_seed)
        found = []
        for implant in self.implants:
            centre = np.asarray([implant.centre])
            upright = (centre - anatomy.deformation.at(centre)) * np.asarray(anatomy.scale)
            x, y, z = (float(v) for v in a.rotation @ upright[0] + a.shift_mm)
            half_mm = 0.6 * implant.radii[2] + 0.5 * a.slice_thickness_mm
            phases = tuple(float(v) for v in rng.uniform(0, 2 * np.pi, len(RAYS)))
            found.append(Streak((x, y, z), half_mm, a.metal_hu, phases))
        return tuple(found)

    @property
    def swellings(self) -> list[tuple[Xyz, float]]:
        """Scalp swellings, benign or over a fracture."""
        found = [
            (lesion.centre, lesion.swelling_mm)
            for lesion in self.lesions
            if isinstance(lesion, Fracture) and lesion.swelling_mm
        ]
        benign = self.anatomy.skull.swelling
        return found if benign is None else [*found, benign]


def draw_scan(
    preset: PhantomPreset,
    site: SiteProfile,
    seed: int,
    patient: int,
    scan: int = 0,
    findings: Mapping[str, bool | float] | None = None,
    home: SiteProfile | None = None,
    days: float | None = None,
) -> ScanSpec:
    """Draw one scan of one patient at one site.

    Args:
        preset: difficulty and prevalences.
        site: the hospital whose scanner is used.
        seed: of the whole archive.
        patient: number of the patient; head and findings depend on (seed, patient) and, for
            the findings, on the day only.
        scan: number of the scan of this patient; findings have changed since the first.
        findings: where given, exactly these are planted: True, or a severity above 0.
        days: since the first scan; `patient.scan_day` where not given.
        home: the hospital that says how common metal is in its patients; `site` where not given.

    Raises:
        UsageError: an unknown finding.
    """
    anatomy = draw_anatomy(np.random.default_rng([seed, patient, ANATOMY]), preset)
    days = float(scan_day(seed, patient, scan)) if days is None else days
    rng = np.random.default_rng([seed, patient, scan, ACQUISITION, *site.name.encode()])
    return ScanSpec(
        seed=seed,
        patient=patient,
        scan=scan,
        site=site.name,
        anatomy=anatomy,
        days=days,
        lesions=draw_findings(preset, seed, patient, anatomy, days, findings),
        acquisition=draw_acquisition(rng, site, preset),
        shift_label_mm=preset.shift_label_mm,
        implants=draw_implants(np.random.default_rng([seed, patient, METAL]), home or site),
    )


def mirrored(spec: ScanSpec) -> ScanSpec:
    """The mirror image of a scan: rendered on a grid that is symmetric about the middle, it is
    the same volume with left and right exchanged.
    """
    return replace(spec, mirror=not spec.mirror)


def head_box_mm(spec: ScanSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner (S, A, R) in mm of the cranium in the scanner frame.

    Analytic: the box of the turned ellipsoid of the scalp; face, ears and neck are left out, and
    the smooth deformation of the head is not seen.
    """
    skull, a = spec.anatomy.skull, spec.acquisition
    top = skull.parietal + skull.scalp
    back = 0.5 * (skull.frontal + skull.occipital) + skull.scalp
    radii = np.add(VAULT_RADII_MM, (skull.temporal + skull.scalp, back, top))
    radii = radii * spec.anatomy.scale
    offset = np.array([0.0, 0.5 * (skull.frontal - skull.occipital), 0.0])
    half = np.sqrt((a.rotation**2) @ (radii**2))
    centre = a.rotation @ offset + a.shift_mm
    low, high = centre - half, centre + half
    if spec.mirror:
        low[0], high[0] = -high[0], -low[0]
    return low[::-1].copy(), high[::-1].copy()


def canonical_affine(spec: ScanSpec, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """Affine of the canonical grid around the head: centred in plane, top-aligned at the vertex.

    Voxel index (z, y, x) -> (S, A, R) in mm, as ingest makes it from the scanned head.
    """
    low, high = head_box_mm(spec)
    spacing = np.asarray(preprocessing.spacing_mm_zyx)
    extent = (np.asarray(preprocessing.shape_zyx) - 1) * spacing
    high[0] = min(high[0], highest_mm(spec))
    first = (low + high) / 2 - extent / 2
    first[0] = high[0] + preprocessing.vertex_margin_mm - spacing[0] / 2 - extent[0]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first
    return affine


def highest_mm(spec: ScanSpec) -> float:
    """Height of the upper face of the topmost slice, at its middle, in the scanner frame."""
    a = spec.acquisition
    n_slices = np.ceil((a.below_mm + a.above_mm) / a.slice_thickness_mm)
    return float(n_slices * a.slice_thickness_mm - a.below_mm)


def acquisition_grid(spec: ScanSpec) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the slices that the scanner made: contiguous, sheared by gantry tilt."""
    a = spec.acquisition
    pixel = a.fov_mm / a.matrix
    step = a.slice_thickness_mm
    n_slices = int(np.ceil((a.below_mm + a.above_mm) / step))
    tilt = np.deg2rad(a.gantry_tilt_deg)
    affine = np.zeros((4, 4))
    affine[0, 0] = step
    affine[:2, 1] = (np.sin(tilt) * pixel, np.cos(tilt) * pixel)
    affine[2, 2] = pixel
    affine[3, 3] = 1
    middle = (a.matrix - 1) / 2
    affine[:3, 3] = -affine[:3, 1] * middle - affine[:3, 2] * middle
    affine[0, 3] -= a.below_mm - step / 2
    return (n_slices, a.matrix, a.matrix), affine
