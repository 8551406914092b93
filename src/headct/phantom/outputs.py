"""One planned study -> what is written of it: DICOM files, a NIfTI file, or a scan of a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from headct.atomic import replacing, write_text
from headct.phantom.dicom import SeriesHeader
from headct.phantom.folders import arranged, write_folder
from headct.phantom.plan import Study, archive_sites
from headct.phantom.pool import PoolScan, manifest_row
from headct.phantom.profile import Output, PhantomPreset
from headct.phantom.render import Rendered, canonical_affine, render_scan
from headct.phantom.rows import Row, finding_rows, label_row, planted_row, report_row, scan_row
from headct.phantom.study import as_displayed, header_of, rendered_series, spec_of
from headct.volume.nifti import write_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.volume import Volume


class StudyRecord(TypedDict):
    """What the tables say about one study."""

    index: int
    label: Row | None
    scan: Row | None
    findings: list[Row]
    report: Row | None
    planted: list[Row]
    nifti: Row | None


@dataclass(frozen=True)
class StudyJob:
    """What a worker needs to make one study; `archive` is the folder of the archive."""

    preset: PhantomPreset
    study: Study
    archive: str


@dataclass(frozen=True, eq=False)
class Made:
    """A study that is written; `scan` is what the store must still take."""

    record: StudyRecord
    scan: PoolScan | None = None


def make_study(job: StudyJob) -> Made:
    """Render a study, write it in the preset's output, and say what is in it.

    The study's folder or file appears whole.
    """
    return _MAKE[job.preset.output](job)


def _dicom(job: StudyJob) -> Made:
    study, archive = job.study, Path(job.archive)
    series, rendered, affine_zyx = rendered_series(job.preset, study)
    folder = arranged(study, series)
    if study.split is not None:
        _write_masks(archive, series.header.study_uid, rendered, affine_zyx)
    write_folder(archive, study, folder)
    record = _record(job, series.header, rendered)
    record["planted"] = [planted_row(study, series.header, *planted) for planted in folder.planted]
    return Made(record)


def _nifti(job: StudyJob) -> Made:
    """The voxels and axes of the DICOM series in one file, and each mask on the same grid."""
    study, archive = job.study, Path(job.archive)
    series, rendered, affine_zyx = rendered_series(job.preset, study)
    header, file = series.header, _bids_path(job.preset, study)
    path = archive / "nifti" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_name(path.name.replace(".nii.gz", ".json")), _sidecar(header))
    write_nifti(path, Volume(series.hu, series.affine_zyx))
    for finding, mask in rendered.masks.items():
        shown, affine = as_displayed(mask.astype(np.uint8), affine_zyx)
        path = archive / "truth" / "masks" / header.study_uid / f"{finding}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, Volume(shown, affine))
    record = _record(job, header, rendered)
    record["nifti"] = {"file": file, "patient": header.patient_id, "study": header.study_uid}
    return Made(record)


def _bids_path(preset: PhantomPreset, study: Study) -> str:
    """Where BIDS looks for a scan: each site is a data set, each scan of a patient a session.

    A scan that another site made of a patient is a session in the patient's own data set: a
    subject of another one would be another person.
    """
    home = archive_sites(preset)[study.home_index].name
    subject = f"sub-{study.patient.patient_id}"
    session = f"ses-{study.scan + 1}{'rescan' if study.rescan else ''}"
    return f"{home}/{subject}/{session}/ct/{subject}_{session}_ct.nii.gz"


def _sidecar(header: SeriesHeader) -> str:
    """What the scanner says, under the names of BIDS and dcm2niix; nobody is named in it."""
    values = {
        "Modality": "CT",
        "Manufacturer": header.manufacturer,
        "ManufacturersModelName": header.model,
        "ConvolutionKernel": header.kernel,
        "KVP": header.kvp,
        "SliceThickness": header.slice_thickness_mm,
        "BodyPartExamined": header.body_part,
        "StudyDescription": header.study_description,
        "SeriesDescription": header.series_description,
        "ContrastBolusAgent": header.contrast_agent,
    }
    return json.dumps({name: value for name, value in values.items() if value}, indent=2) + "\n"


def _store(job: StudyJob) -> Made:
    """On the canonical grid, as ingest would bring it there; labels name the scan of the store."""
    preset, study = job.preset, job.study
    grid, spec = PRESETS[preset.pool_grid], spec_of(preset, study)
    affine = canonical_affine(spec, grid)
    rendered = render_scan(spec, grid.shape_zyx, affine, as_ingested=True)
    header = header_of(preset, study, spec)
    row = manifest_row(preset, spec, affine, header.study_uid)
    _write_masks(Path(job.archive), row["scan_id"], rendered, affine)
    record = _record(job, header, rendered)
    if record["label"] is not None and record["scan"] is not None:
        about = {"scan_id": row["scan_id"], "patient_id": row["patient_id"]}
        record["label"] = {k: v for k, v in record["label"].items() if k != "study_uid"} | about
        record["scan"] |= about
    return Made(record, (rendered.hu, row))


_MAKE: dict[Output, Callable[[StudyJob], Made]] = {
    "dicom": _dicom,
    "nifti": _nifti,
    "store": _store,
}


def _record(job: StudyJob, header: SeriesHeader, rendered: Rendered) -> StudyRecord:
    study, labelled = job.study, job.study.split is not None
    return StudyRecord(
        index=study.index,
        label=label_row(job.preset, study, header, rendered) if labelled else None,
        scan=scan_row(study, header, rendered) if labelled else None,
        findings=list(finding_rows(study, header, rendered)) if labelled else [],
        report=report_row(header, rendered) if labelled else None,
        planted=[],
        nifti=None,
    )


def _write_masks(
    archive: Path, name: str, rendered: Rendered, affine_zyx: NDArray[np.float64]
) -> None:
    """Masks of the findings that have a place, [z y x], with the affine of their own grid."""
    if rendered.masks:
        path = archive / "truth" / "masks" / f"{name}.npz"
        with replacing(path) as aside, aside.open("wb") as handle:
            arrays: dict[str, Any] = dict(sorted(rendered.masks.items()))
            np.savez_compressed(handle, affine_zyx=affine_zyx, **arrays)
