"""Rows of an archive's tables about one study: labels, truth, what is planted."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import dcmread

from headct.phantom.dicom import SeriesHeader
from headct.phantom.faults import Fault
from headct.phantom.plan import Study
from headct.phantom.profile import FINDINGS, PhantomPreset
from headct.phantom.render import Rendered
from headct.phantom.report import write_report

Row = dict[str, Any]


def label_row(preset: PhantomPreset, study: Study, header: SeriesHeader, rendered: Rendered) -> Row:
    """A row of labels.csv; some values are left out, as in hospitals."""
    rng = np.random.default_rng([preset.seed, study.index, 4])
    unknown = rng.random(len(FINDINGS)) < preset.unknown_fraction
    labels = rendered.truth["labels"]
    values = {f: "" if u else labels[f] for f, u in zip(FINDINGS, unknown, strict=True)}
    about = {"study_uid": header.study_uid, "patient_id": header.patient_id}
    return about | {"site": study.site, "split": study.split} | values


def scan_row(study: Study, header: SeriesHeader, rendered: Rendered) -> Row:
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


def finding_rows(study: Study, header: SeriesHeader, rendered: Rendered) -> Iterator[Row]:
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


def report_row(header: SeriesHeader, rendered: Rendered) -> Row:
    """A row of truth/reports.csv."""
    findings, impression = write_report(rendered.truth)
    return {"study_uid": header.study_uid, "findings": findings, "impression": impression}


def planted_row(study: Study, header: SeriesHeader, fault: Fault, path: str, first: bytes) -> Row:
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
