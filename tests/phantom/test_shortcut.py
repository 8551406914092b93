"""Two scanners for one patient; acquisition that goes with disease when asked for."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from headct.cli import phantom as cli
from headct.errors import UsageError
from headct.phantom.archive import write_archive
from headct.phantom.plan import archive_sites, plan_studies
from headct.phantom.profile import DRAWN_FINDINGS, FINDINGS, PhantomPreset, load_preset, load_site
from headct.phantom.scan import draw_scan
from headct.phantom.shortcut import with_shortcut

SMALL = [
    *("n_train=30", "n_tune=0", "n_test=6", "n_external=2", "n_pool=0", "max_matrix=32"),
    *("min_slice_mm=15", "faults=false", "unknown_fraction=0", "repeat_fraction=0.3"),
]
HALF_IPH = [f"prevalence.{finding}=0" for finding in DRAWN_FINDINGS] + ["prevalence.iph=0.5"]
BY_KERNEL = ['shortcut.finding="iph"', 'shortcut.kernel="H31s"']


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def headers(archive: Path) -> dict[str, tuple[str, str]]:
    """study_uid -> (kernel, patient ID) of every study on disk."""
    found = {}
    for folder in archive.glob("dicom/*/ST*"):
        image = dcmread(
            next(p for p in sorted(folder.rglob("*")) if p.is_file()), stop_before_pixels=True
        )
        found[str(image.StudyInstanceUID)] = (str(image.ConvolutionKernel), str(image.PatientID))
    return found


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paired") / "archive"
    settings = [*SMALL, "n_train=2"]
    cli.phantom(folder, preset="tiny", overrides=settings, repeat_scanner=True, jobs=1)
    return folder


def test_a_rescan_is_the_same_patient_at_the_other_site(paired: Path) -> None:
    pairs, labels = rows(paired / "truth" / "pairs.csv"), rows(paired / "labels.csv")
    by_uid = {row["study_uid"]: row for row in labels}
    kernels = headers(paired)
    assert len(pairs) == 6
    assert len(labels) == 2 + 6 + 2 + 6
    for pair in pairs:
        one, other = by_uid[pair["study_uid"]], by_uid[pair["rescan_study_uid"]]
        assert (one["site"], other["site"]) == ("hospital-a", "hospital-b")
        assert one["patient_id"] == other["patient_id"]
        assert one["split"] == other["split"] == "test"
        kernel, patient = kernels[pair["rescan_study_uid"]]
        assert kernel in {s.kernel for s in load_site("hospital-b").scanners}
        assert patient == one["patient_id"]
    same = [
        one[finding] == other[finding]
        for one, other in ((by_uid[p["study_uid"]], by_uid[p["rescan_study_uid"]]) for p in pairs)
        for finding in FINDINGS
    ]
    assert np.mean(same) > 0.95, "a scan with less coverage may not show a finding"


def test_rescans_change_no_other_study() -> None:
    plain = load_preset("tiny", SMALL)
    paired = load_preset("tiny", [*SMALL, "rescanned_fraction=0.5"])
    studies, more = plan_studies(plain), plan_studies(paired)
    assert more[: len(studies)] == studies
    again = more[len(studies) :]
    assert 0 < len(again) < 6
    for study in again:
        first = next(s for s in studies if (s.patient, s.scan) == (study.patient, study.scan))
        assert (first.day, first.split) == (study.day, study.split)
        a, b = (
            draw_scan(paired, archive_sites(paired)[s.site_index], 0, s.patient.number, s.scan)
            for s in (first, study)
        )
        assert a.lesions == b.lesions
        assert a.acquisition != b.acquisition


def test_a_rescan_needs_a_second_site(tmp_path: Path) -> None:
    lonely = load_preset("tiny", [*SMALL, "rescanned_fraction=1", 'sites=["hospital-a"]'])
    with pytest.raises(UsageError, match="second site"):
        write_archive(lonely, tmp_path / "archive", 1)


def shares(preset: PhantomPreset, where: str, mark: str, n: int = 500) -> tuple[float, float]:
    """Share of a kernel among patients with IPH and without."""
    site = archive_sites(preset)[0]
    marked: dict[bool, list[bool]] = {True: [], False: []}
    for patient in range(n):
        spec = draw_scan(preset, site, 0, patient)
        seen = with_shortcut(spec, preset, site, where)  # type: ignore[arg-type]
        assert (seen.anatomy.brain, seen.lesions) == (spec.anatomy.brain, spec.lesions)
        has = any(lesion.finding == "iph" for lesion in spec.lesions)
        marked[has].append(getattr(seen.acquisition, mark.split("=")[0]) == mark.split("=")[1])
    return float(np.mean(marked[True])), float(np.mean(marked[False]))


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_the_correlation_is_as_strong_as_asked(strength: float) -> None:
    asked = f"shortcut.strength={strength}"
    preset = load_preset("tiny", [*SMALL, *HALF_IPH, *BY_KERNEL, asked])
    ill, well = shares(preset, "train", "kernel=H31s")
    assert ill - well == pytest.approx(strength, abs=0.13)
    assert (ill + well) / 2 == pytest.approx(0.5, abs=0.07)


def test_other_splits_know_nothing_of_the_disease() -> None:
    preset = load_preset("tiny", [*SMALL, *HALF_IPH, *BY_KERNEL, "shortcut.strength=1"])
    ill, well = shares(preset, "test", "kernel=H31s")
    assert abs(ill - well) < 0.15
    asked = load_preset(
        "tiny", [*SMALL, *BY_KERNEL, "shortcut.strength=1", 'shortcut.splits=["pool"]']
    )
    assert shares(asked, "pool", "kernel=H31s", 60) == (1.0, 0.0)


def test_another_site_may_be_the_mark() -> None:
    wanted = ['shortcut.finding="iph"', 'shortcut.site="hospital-b"', "shortcut.strength=1"]
    preset = load_preset("tiny", [*SMALL, *wanted])
    site, other = archive_sites(preset)[0], load_site("hospital-b")
    for patient in range(40):
        spec = draw_scan(preset, site, 0, patient)
        seen = with_shortcut(spec, preset, site, "train").acquisition
        has = any(lesion.finding == "iph" for lesion in spec.lesions)
        assert (seen.model in {s.model for s in other.scanners}) == has
        assert seen.slice_thickness_mm >= 15
        assert seen.matrix == 32


def test_the_archive_shows_the_correlation(tmp_path: Path) -> None:
    preset = load_preset("tiny", [*SMALL, *BY_KERNEL, "shortcut.strength=1", "n_test=0"])
    write_archive(preset, tmp_path / "archive", 1)
    kernels = headers(tmp_path / "archive")
    train = [r for r in rows(tmp_path / "archive" / "labels.csv") if r["split"] == "train"]
    with_iph = [kernels[r["study_uid"]][0] == "H31s" for r in train if r["iph"] == "1"]
    without = [kernels[r["study_uid"]][0] == "H31s" for r in train if r["iph"] == "0"]
    assert len(with_iph) >= 3
    assert all(with_iph)
    assert np.mean(without) < 0.1, "a bleeding outside the picture is not labelled"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['shortcut.finding="iph"', "shortcut.strength=1"], "kernel or site"),
        ([*BY_KERNEL, "shortcut.strength=1.5"], "shortcut.strength.*1.5 is above 1, the most"),
        (['shortcut.finding="ihp"', "shortcut.strength=1", 'shortcut.kernel="H31s"'], "finding"),
        (
            ['shortcut.finding="iph"', "shortcut.strength=1", 'shortcut.kernel="H99"'],
            "several kernels of 'hospital-a'",
        ),
        (
            ['shortcut.finding="iph"', "shortcut.strength=1", 'shortcut.site="hospital-a"'],
            "the first site itself",
        ),
    ],
)
def test_an_impossible_shortcut_is_refused(settings: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        write_archive(load_preset("tiny", [*SMALL, *settings]), tmp_path / "archive", 1)
    assert not (tmp_path / "archive").exists()
