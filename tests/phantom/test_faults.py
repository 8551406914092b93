"""What is planted is what ingest finds."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.dicom.reasons import Status
from headct.ingest.pipeline import ingest
from headct.phantom.archive import write_archive
from headct.phantom.decoys import HeadSeries
from headct.phantom.faults import FAULTS
from headct.phantom.plan import archive_sites, plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series
from headct.run import read_jsonl
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series


@pytest.fixture(scope="module")
def series() -> HeadSeries:
    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    return rendered_series(preset, plan_studies(preset)[0])[0]


def test_ingest_comes_to_every_planted_outcome(tmp_path: Path) -> None:
    """Files by their path, series by their UID; the scans beside them are taken."""
    preset = PhantomPreset(n_train=1, n_tune=0, n_test=0, n_external=1, max_matrix=64)
    write_archive(preset.model_copy(update={"min_slice_mm": 6.0}), tmp_path / "archive", 1)
    key = tmp_path / "key"
    load_key(key)
    ingest([tmp_path / "archive"], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key)
    found = defaultdict(set)
    for item in read_jsonl(tmp_path / "store" / "items.jsonl"):
        found[item["source"]] |= {item["reason"], *item["flags"]}
    names = Pseudonymizer(load_key(key))
    with (tmp_path / "archive" / "truth" / "planted.csv").open(encoding="utf-8") as handle:
        planted = list(csv.DictReader(handle))
    assert {row["what"] for row in planted} == set(FAULTS)
    for row in planted:
        path = (tmp_path / "archive" / row["path"]).absolute()
        uid = row["series_uid"]
        source = names.series_id(uid) if uid else names.source_id(path)
        assert row["reason"] in found[source], row["what"]


def test_the_series_without_a_fault_is_accepted(series: HeadSeries, tmp_path: Path) -> None:
    for number, file in enumerate(series.files()):
        (tmp_path / f"IM{number:04d}").write_bytes(file)
    volume = read_series(tmp_path)
    assert (volume.shape_zyx, volume.flags) == (series.hu.shape, ())


def test_faults_lead_to_every_kind_of_outcome() -> None:
    statuses = {fault.reason.status for fault in FAULTS.values()}
    assert statuses == {Status.REFUSED, Status.FLAGGED, Status.SKIPPED}


def test_each_fault_is_planted_once_in_turn_at_the_sites() -> None:
    preset = PhantomPreset(n_train=1, n_tune=0, n_test=0, n_external=1)
    studies = [study for study in plan_studies(preset) if study.fault]
    assert [study.fault for study in studies] == list(FAULTS)
    assert {study.site for study in studies} == {site.name for site in archive_sites(preset)}
    assert all(study.split is None for study in studies)
