"""What is planted is what the reader finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.dicom.index import index_paths
from headct.dicom.reasons import Status
from headct.dicom.series import Stack, read_stacks
from headct.phantom.decoys import HeadSeries
from headct.phantom.faults import FAULTS, Fault
from headct.phantom.plan import archive_sites, plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series

BY_CONTENT_OR_CRITERIA = frozenset(
    {"chest", "chest-tagged-head", "knee", "water-phantom", "wrong-calibration", "constant-image"}
    | {"contrast", "bone-kernel", "vertex-cut", "infant"}
)
"""Readable series: what is wrong with them is for ingest to say."""


@pytest.fixture(scope="module")
def series() -> HeadSeries:
    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    return rendered_series(preset, plan_studies(preset)[0])[0]


def outcomes(folder: Path) -> list[str]:
    """Every reason code that the reader gives for a folder."""
    index = index_paths([folder])
    codes = [str(outcome.reason) for outcome in index.outcomes]
    for found in index.series:
        for stack in read_stacks(found):
            codes += [str(f) for f in stack.flags] if isinstance(stack, Stack) else [stack.code]
    return codes


def plant(fault: Fault, series: HeadSeries, folder: Path) -> None:
    for number, file in enumerate(fault.plant(series)):
        (folder / f"IM{number:04d}").write_bytes(file)


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - BY_CONTENT_OR_CRITERIA))
def test_the_reader_names_the_fault(name: str, series: HeadSeries, tmp_path: Path) -> None:
    fault = FAULTS[name]
    plant(fault, series, tmp_path)
    assert fault.reason in outcomes(tmp_path)


@pytest.mark.parametrize("name", sorted(BY_CONTENT_OR_CRITERIA))
def test_faults_of_content_are_readable_series(
    name: str, series: HeadSeries, tmp_path: Path
) -> None:
    plant(FAULTS[name], series, tmp_path)
    assert outcomes(tmp_path) == []


def test_the_series_without_a_fault_is_accepted(series: HeadSeries, tmp_path: Path) -> None:
    plant(Fault("none", FAULTS["knee"].reason, HeadSeries.files), series, tmp_path)
    assert outcomes(tmp_path) == []


def test_faults_lead_to_every_kind_of_outcome() -> None:
    statuses = {fault.reason.status for fault in FAULTS.values()}
    assert statuses == {Status.REFUSED, Status.FLAGGED, Status.SKIPPED}


def test_each_fault_is_planted_once_in_turn_at_the_sites() -> None:
    preset = PhantomPreset(n_train=1, n_tune=0, n_test=0, n_external=1)
    studies = [study for study in plan_studies(preset) if study.fault]
    assert [study.fault for study in studies] == list(FAULTS)
    assert {study.site for study in studies} == {site.name for site in archive_sites(preset)}
    assert all(study.split is None for study in studies)
