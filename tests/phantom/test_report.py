"""What a report says is what is true."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headct.phantom.archive import write_archive
from headct.phantom.profile import DRAWN_FINDINGS, PhantomPreset, load_preset, load_site
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.phantom.report import NAMES, write_report
from headct.volume.preprocessing import PRESETS

PRESET, SITE, GRID = load_preset("base"), load_site("hospital-a"), PRESETS["demo"]


def report_of(**findings: float) -> tuple[str, str]:
    spec = draw_scan(PRESET, SITE, 0, 1, findings=findings)
    affine = canonical_affine(spec, GRID)
    return write_report(render_scan(spec, GRID.shape_zyx, affine, masks=False).truth)


@pytest.mark.parametrize("finding", DRAWN_FINDINGS)
def test_a_report_names_what_is_there_and_nothing_else(finding: str) -> None:
    findings, impression = report_of(**{finding: 0.8})
    said = findings.split("No relevant")[0].split("Midline shift")[0].lower()
    for name, words in NAMES.items():
        assert (words in impression.lower()) == (name == finding), name
        assert (words in said) == (name == finding), name
    assert ("No haemorrhage" in findings) == (finding not in ("edh", "sdh", "sah", "iph", "ivh"))


def test_a_healthy_head() -> None:
    assert report_of() == (
        "No relevant midline shift. No haemorrhage, infarct or mass.",
        "No acute abnormality.",
    )


def test_midline_shift_has_its_side() -> None:
    findings, impression = report_of(edh=1.0)
    spec = draw_scan(PRESET, SITE, 0, 1, findings={"edh": 1.0})
    side = "right" if spec.midline_shift_mm > 0 else "left"
    words = f"{abs(spec.midline_shift_mm):.0f} mm"
    assert f"Midline shift of {words} to the {side}." in findings
    assert f"midline shift of {words}" in impression


def test_an_archive_has_a_report_for_each_labelled_study(tmp_path: Path) -> None:
    preset = PhantomPreset(
        n_train=3, n_tune=0, n_test=0, n_external=1, faults=False, max_matrix=64, min_slice_mm=6
    )
    write_archive(preset, tmp_path / "archive", 1)
    with (tmp_path / "archive" / "truth" / "reports.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    scans = pq.read_table(tmp_path / "archive" / "truth" / "scans.parquet")
    assert [row["study_uid"] for row in rows] == scans["study_uid"].to_pylist()
    assert all(row["findings"].endswith(".") and row["impression"] for row in rows)
