"""One planned study -> its folder of DICOM files, its masks and its rows of truth."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from headct.atomic import replacing
from headct.phantom.acquisition import Acquisition
from headct.phantom.decoys import HeadSeries
from headct.phantom.dicom import SeriesHeader
from headct.phantom.faults import FAULTS, Fault
from headct.phantom.files import phantom_uid
from headct.phantom.plan import Study, archive_sites
from headct.phantom.plan import study_uid as uid_of_study
from headct.phantom.profile import FINDINGS, PhantomPreset
from headct.phantom.render import Rendered, render_scan
from headct.phantom.scan import ScanSpec, acquisition_grid, draw_scan
from headct.phantom.shortcut import with_shortcut

Row = dict[str, Any]

SIGNED_MANUFACTURERS = ("GE MEDICAL SYSTEMS", "TOSHIBA")
"""These store signed pixels, padded outside the reconstruction circle."""
BESIDE = (FAULTS["localizer"], FAULTS["dose-report"])
"""What lies in the same folder as the scan in a study of mixed layout."""


class StudyRecord(TypedDict):
    """What the tables say about one study."""

    index: int
    label: Row | None
    scan: Row | None
    findings: list[Row]
    planted: list[Row]


@dataclass(frozen=True)
class StudyJob:
    """What a worker needs to make one study; `archive` is the folder of the archive."""

    preset: PhantomPreset
    study: Study
    archive: str


@dataclass
class _Folder:
    """Files of a study by their path in its folder, and what is planted among them."""

    files: dict[str, bytes] = field(default_factory=dict)
    planted: list[tuple[Fault, str, bytes]] = field(default_factory=list)

    def add(self, folder: str, files: list[bytes], first: int = 1, suffix: str = "") -> None:
        """Put the files of a series into a sub-folder."""
        names = (f"{folder}IM{first + i:04d}{suffix}" for i in range(len(files)))
        self.files.update(zip(names, files, strict=True))


def make_study(job: StudyJob) -> StudyRecord:
    """Render a study, write it, and say what is in it; the study's folder appears whole."""
    study, archive = job.study, Path(job.archive)
    series, rendered, affine_zyx = rendered_series(job.preset, study)
    header = series.header
    folder = _arranged(study, series)
    if study.split is not None:
        _write_masks(archive / "truth" / "masks" / f"{header.study_uid}.npz", rendered, affine_zyx)
    _write_folder(archive, study, folder)
    return StudyRecord(
        index=study.index,
        label=_label(job.preset, study, header, rendered) if study.split else None,
        scan=_scan(study, header, rendered) if study.split else None,
        findings=list(_findings(study, header, rendered)) if study.split else [],
        planted=[_planted(study, header, *planted) for planted in folder.planted],
    )


def rendered_series(
    preset: PhantomPreset, study: Study
) -> tuple[HeadSeries, Rendered, NDArray[np.float64]]:
    """The head CT series of a study, and the truth about it with the affine of its own grid."""
    sites = archive_sites(preset)
    site, home = sites[study.site_index], sites[study.home_index]
    spec = draw_scan(preset, site, preset.seed, study.patient.number, study.scan, home=home)
    spec = with_shortcut(spec, preset, site, study.split)
    shape_zyx, affine_zyx = acquisition_grid(spec)
    rendered = render_scan(spec, shape_zyx, affine_zyx, masks=study.split is not None)
    hu, displayed = _as_displayed(rendered.hu, affine_zyx)
    header = _header(preset, study, spec)
    return HeadSeries(hu, displayed, header, study.transfer_syntax), rendered, affine_zyx


def _as_displayed(
    hu: NDArray[np.int16], affine_zyx: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Rows from front to back, columns from right to left, as a scanner stores its slices."""
    _, n_rows, n_columns = hu.shape
    flip = np.diag([1.0, -1, -1, 1])
    flip[1, 3], flip[2, 3] = n_rows - 1, n_columns - 1
    return np.ascontiguousarray(hu[:, ::-1, ::-1]), affine_zyx @ flip


def _header(preset: PhantomPreset, study: Study, spec: ScanSpec) -> SeriesHeader:
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


def _arranged(study: Study, series: HeadSeries) -> _Folder:
    """The files of the study in the folders that its layout asks for."""
    folder = _Folder()
    if study.fault is not None:
        _plant(folder, FAULTS[study.fault], series)
    elif study.layout == "plain":
        folder.add("SE0002/", series.files())
    elif study.layout == "spread":
        files = series.files()
        folder.add("PART1/", files[::2])
        folder.add("PART2/", files[1::2])
    else:
        folder.add("", series.files(), suffix=".dcm")
        for n, fault in enumerate(BESIDE):
            files = fault.plant(series)
            folder.planted.append((fault, "", files[0]))
            folder.add("", files, first=901 + n, suffix=".dcm")
    return folder


def _plant(folder: _Folder, fault: Fault, series: HeadSeries) -> None:
    files = fault.plant(series)
    if fault.replaces:
        folder.add("SE0002/", files)
        folder.planted.append((fault, "SE0002", files[0]))
        return
    folder.add("SE0002/", series.files())
    where = f"EXTRA/{fault.name.upper()}" if fault.per_file else "SE0900"
    if fault.per_file:
        folder.files[where] = files[0]
    else:
        folder.add(f"{where}/", files)
    folder.planted.append((fault, where, files[0]))


def _write_folder(archive: Path, study: Study, folder: _Folder) -> None:
    staged = archive / ".staging" / f"{study.index:06d}"
    final = archive / "dicom" / study.folder
    shutil.rmtree(staged, ignore_errors=True)
    for path, content in folder.files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(content)
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(final)


def _write_masks(path: Path, rendered: Rendered, affine_zyx: NDArray[np.float64]) -> None:
    """Masks of the findings that have a place, [z y x], with the affine of their own grid."""
    if rendered.masks:
        with replacing(path) as aside, aside.open("wb") as handle:
            arrays: dict[str, Any] = dict(sorted(rendered.masks.items()))
            np.savez_compressed(handle, affine_zyx=affine_zyx, **arrays)


def _label(preset: PhantomPreset, study: Study, header: SeriesHeader, rendered: Rendered) -> Row:
    """A row of labels.csv; some values are left out, as in hospitals."""
    rng = np.random.default_rng([preset.seed, study.index, 4])
    unknown = rng.random(len(FINDINGS)) < preset.unknown_fraction
    labels = rendered.truth["labels"]
    values = {f: "" if u else labels[f] for f, u in zip(FINDINGS, unknown, strict=True)}
    about = {"study_uid": header.study_uid, "patient_id": header.patient_id}
    return about | {"site": study.site, "split": study.split} | values


def _scan(study: Study, header: SeriesHeader, rendered: Rendered) -> Row:
    """A row of truth/scans.parquet."""
    measured = ("days", "midline_shift_mm", "evans_index", "csf_ml", "ventricles_ml")
    return {
        "study_uid": header.study_uid,
        "patient_id": header.patient_id,
        "site": study.site,
        "scan": study.scan,
        "age_years": header.age_years,
        "sex": header.sex,
    } | {name: rendered.truth[name] for name in measured}


def _findings(study: Study, header: SeriesHeader, rendered: Rendered) -> Iterator[Row]:
    """Rows of truth/findings.parquet."""
    truth = rendered.truth
    scan = {"study_uid": header.study_uid, "site": study.site}
    scan["midline_shift_mm"] = truth["midline_shift_mm"]
    for finding, present in truth["labels"].items():
        if present:
            volume_ml = truth["volume_ml"].get(finding)
            yield {**scan, "finding": finding, "volume_ml": volume_ml} | truth["findings"].get(
                finding, {}
            )


def _planted(study: Study, header: SeriesHeader, fault: Fault, path: str, first: bytes) -> Row:
    """A row of truth/planted.csv."""
    return {
        "what": fault.name,
        "site": study.site,
        "study_uid": header.study_uid,
        "series_uid": "" if fault.per_file else _series_uid(first),
        "path": f"dicom/{study.folder}/{path}".rstrip("/"),
        "status": fault.reason.status.value,
        "reason": fault.reason.value,
    }


def _series_uid(file: bytes) -> str:
    return str(dcmread(BytesIO(file), specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID)
