"""One planned study -> its spec, its head CT series and the header of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.phantom.acquisition import Acquisition
from headct.phantom.decoys import HeadSeries
from headct.phantom.dicom import SeriesHeader
from headct.phantom.files import phantom_uid
from headct.phantom.plan import Study, archive_sites
from headct.phantom.plan import study_uid as uid_of_study
from headct.phantom.profile import PhantomPreset
from headct.phantom.render import Rendered, render_scan
from headct.phantom.scan import ScanSpec, acquisition_grid, draw_scan
from headct.phantom.shortcut import with_shortcut

SIGNED_MANUFACTURERS = ("GE MEDICAL SYSTEMS", "TOSHIBA")
"""These store signed pixels, padded outside the reconstruction circle."""


def spec_of(preset: PhantomPreset, study: Study) -> ScanSpec:
    """What is to be rendered for a study."""
    sites = archive_sites(preset)
    site, home = sites[study.site_index], sites[study.home_index]
    spec = draw_scan(preset, site, preset.seed, study.patient.number, study.scan, home=home)
    return with_shortcut(spec, preset, site, study.split)


def rendered_series(
    preset: PhantomPreset, study: Study
) -> tuple[HeadSeries, Rendered, NDArray[np.float64]]:
    """The head CT series of a study, and the truth about it with the affine of its own grid."""
    spec = spec_of(preset, study)
    shape_zyx, affine_zyx = acquisition_grid(spec)
    rendered = render_scan(spec, shape_zyx, affine_zyx, masks=study.split is not None)
    hu, displayed = as_displayed(rendered.hu, affine_zyx)
    header = header_of(preset, study, spec)
    return HeadSeries(hu, displayed, header, study.transfer_syntax), rendered, affine_zyx


def as_displayed(
    hu: NDArray[Any], affine_zyx: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Rows from front to back, columns from right to left, as a scanner stores its slices."""
    _, n_rows, n_columns = hu.shape
    flip = np.diag([1.0, -1, -1, 1])
    flip[1, 3], flip[2, 3] = n_rows - 1, n_columns - 1
    return np.ascontiguousarray(hu[:, ::-1, ::-1]), affine_zyx @ flip


def header_of(preset: PhantomPreset, study: Study, spec: ScanSpec) -> SeriesHeader:
    """What the scanner writes about a scan."""
    patient, scanner = study.patient, spec.acquisition
    study_uid = uid_of_study(preset.seed, study)
    signed = scanner.manufacturer in SIGNED_MANUFACTURERS
    header = SeriesHeader(
        patient_name=patient.name,
        patient_id=patient.patient_id,
        birth_date=f"{patient.first_day.year - spec.anatomy.age_years - 1}0701",
        sex=spec.anatomy.sex,
        age_years=spec.anatomy.age_years,
        study_uid=study_uid,
        series_uid=phantom_uid(study_uid, "axial"),
        date=f"{study.day:%Y%m%d}",
        time=study.time,
        accession=f"A{study.index + 1:06d}",
        manufacturer=scanner.manufacturer,
        model=scanner.model,
        station=f"CT{study.site_index + 1}",
        kernel=scanner.kernel,
        kvp=scanner.kvp,
        slice_thickness_mm=scanner.slice_thickness_mm,
        institution=f"Synthetic {study.site}",
        tilt_deg=scanner.gantry_tilt_deg,
        layout="signed16" if signed else "unsigned12",
        mas=scanner.mas,
    )
    return _described(header, scanner)


def _described(header: SeriesHeader, scanner: Acquisition) -> SeriesHeader:
    """The header with the names of the scan; it may keep silent on contrast medium."""
    series = "Axial bone" if scanner.bone else header.series_description
    if scanner.contrast is None:
        return replace(header, series_description=series)
    told = scanner.contrast.told
    return replace(
        header,
        study_description="CT Head with contrast" if told == "study" else "CT Head",
        series_description=f"{series} post contrast" if told == "series" else series,
        contrast_agent="IOHEXOL" if told == "agent" else "",
    )
