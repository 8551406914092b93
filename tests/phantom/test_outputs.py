"""The same patients as DICOM, as NIfTI and straight in a store."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.ingest.pipeline import ingest
from headct.labels.nifti_set import nifti_name
from headct.phantom import archive as archive_module
from headct.phantom.archive import JOURNAL, write_archive
from headct.phantom.outputs import Made
from headct.phantom.plan import plan_studies, study_uid
from headct.phantom.profile import FINDINGS, Output, PhantomPreset, Prevalence
from headct.store.labels import needs_key, read_labels
from headct.store.store import open_store
from headct.volume.nifti import read_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series
from headct.volume.volume import Volume

PRESET = PhantomPreset(
    seed=3,
    n_train=5,
    n_tune=2,
    n_test=2,
    n_external=2,
    repeat_fraction=0.4,
    max_matrix=64,
    min_slice_mm=6,
    severity=2.0,
    prevalence=Prevalence(iph=0.5, sdh=0.5),
)
Row = dict[str, str]


def made(folder: Path, output: Output) -> Path:
    write_archive(PRESET.model_copy(update={"output": output}), folder / output, n_workers=1)
    return folder / output


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[Output, Path]:
    folder = tmp_path_factory.mktemp("outputs")
    outputs: tuple[Output, ...] = ("dicom", "nifti", "store")
    return {output: made(folder, output) for output in outputs}


def rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def at(volume: Volume, world: np.ndarray) -> np.ndarray:
    index = np.linalg.inv(volume.affine_zyx) @ world
    z, y, x = np.rint(index[:3]).astype(int)
    found: np.ndarray = volume.hu[z, y, x]
    return found


def test_a_nifti_file_has_the_voxels_of_the_dicom_series(archives: dict[Output, Path]) -> None:
    files = rows(archives["nifti"] / "nifti" / "nifti.csv")
    labels = rows(archives["nifti"] / "labels.csv")
    assert [row["study"] for row in files] == [row["study_uid"] for row in labels]
    assert [row["patient"] for row in files] == [row["patient_id"] for row in labels]
    assert len(files) == 11
    studies = plan_studies(PRESET.model_copy(update={"faults": False}))
    folder_of = {
        study_uid(PRESET.seed, study): archives["dicom"] / "dicom" / study.folder
        for study in studies
    }
    for row in (files[0], files[-1]):
        volume = read_nifti(archives["nifti"] / "nifti" / row["file"])
        series = read_series(folder_of[row["study"]])
        middle = np.array(volume.shape_zyx) // 2
        near = middle[:, None] + np.random.default_rng(0).integers(-6, 7, (3, 50))
        world = volume.affine_zyx @ np.vstack([near, np.ones(50)])
        np.testing.assert_array_equal(at(volume, world), at(series, world))
        assert volume.spacing_mm_zyx == pytest.approx(series.spacing_mm_zyx, abs=1e-3)


def test_ingest_knows_the_patients_of_a_nifti_archive(
    archives: dict[Output, Path], tmp_path: Path
) -> None:
    """By BIDS names; labels by `scan_id`, which follows from the bytes of a file."""
    archive, key = archives["nifti"], tmp_path / "key"
    names = Pseudonymizer(load_key(key))
    ingest([archive / "nifti"], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key)
    files = rows(archive / "nifti" / "nifti.csv")
    manifest = open_store(tmp_path / "store").manifest
    row_of = {row["scan_id"]: row for row in manifest.to_pylist()}
    patients: dict[str, set[str]] = defaultdict(set)
    for file in files:
        row = row_of[nifti_name(archive / "nifti" / file["file"], names)]
        patients[file["patient"]].add(row["patient_id"])
        assert row["manufacturer"] in ("SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "TOSHIBA")
        assert row["age_years"] >= 18
    assert all(len(ids) == 1 for ids in patients.values())
    assert len({name for ids in patients.values() for name in ids}) == len(patients) < len(files)


def test_a_rescan_in_nifti_is_of_the_same_patient(tmp_path: Path) -> None:
    few = {"n_train": 0, "n_tune": 0, "n_external": 1, "repeat_fraction": 0.0}
    preset = PRESET.model_copy(update=few | {"output": "nifti", "rescanned_fraction": 1.0})
    write_archive(preset, tmp_path, n_workers=1)
    key = tmp_path / "key"
    load_key(key)
    ingest([tmp_path / "nifti"], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key)
    manifest = open_store(tmp_path / "store").manifest.to_pylist()
    assert len(manifest) == 5, "two patients twice, one of the other site"
    patients = [row["patient_id"] for row in manifest]
    assert sorted(patients.count(name) for name in set(patients)) == [1, 2, 2]
    assert len({row["study_id"] for row in manifest}) == 5
    listed = [
        line.split("\t")[0]
        for table in (tmp_path / "nifti").glob("*/participants.tsv")
        for line in table.read_text().splitlines()[1:]
    ]
    assert len(listed) == len(set(listed)) == 3


def test_masks_of_a_nifti_archive_lie_on_its_scans(archives: dict[Output, Path]) -> None:
    archive, n_masks = archives["nifti"], 0
    for row in rows(archive / "nifti" / "nifti.csv"):
        scan = nib.load(archive / "nifti" / row["file"])
        for path in (archive / "truth" / "masks" / row["study"]).glob("*.nii.gz"):
            mask = nib.load(path)
            np.testing.assert_allclose(mask.affine, scan.affine)
            inside = np.asarray(mask.dataobj) > 0
            assert inside.shape == scan.shape
            if path.name == "iph.nii.gz" and inside.sum() > 20:
                assert 35 < np.median(np.asarray(scan.dataobj)[inside]) < 80
                n_masks += 1
    assert n_masks > 0


def test_labels_are_the_same_whatever_is_written(archives: dict[Output, Path]) -> None:
    def values(output: Output) -> list[str]:
        return [row[f] for row in rows(archives[output] / "labels.csv") for f in FINDINGS]

    assert values("dicom") == values("nifti")
    # a trace of blood may lie between the slices of a scanner and not between those of the store
    pairs = zip(values("dicom"), values("store"), strict=True)
    assert np.mean([one == other for one, other in pairs]) > 0.97


def test_a_store_holds_the_labelled_scans(archives: dict[Output, Path]) -> None:
    archive = archives["store"]
    store = open_store(archive / "store")
    table = archive / "labels.csv"
    assert not needs_key(table)
    assert store.preprocessing.hash == PRESETS["demo"].hash
    findings = ["iph", "sdh"]
    labels = read_labels(table, store.manifest, findings=findings)
    assert len(labels) == len(store.scan_ids) == 11
    assert list(labels.scan_id) == [row["scan_id"] for row in rows(table)]
    n_masks = 0
    for name, row in zip(labels.scan_id, labels.row, strict=True):
        path = archive / "truth" / "masks" / f"{name}.npz"  # where `headct explain` looks
        if path.exists():
            with np.load(path) as saved:
                if "iph" in saved and saved["iph"].sum() > 30:
                    assert 35 < np.median(store.read_hu([row])[0][saved["iph"]]) < 80
                    n_masks += 1
    assert n_masks > 0
    assert not (archive / "dicom").exists()


@pytest.mark.parametrize("lost", [0, 30])
def test_a_store_that_was_interrupted_ends_the_same(
    archives: dict[Output, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    n_made, make_study = 0, archive_module.make_study

    def stopping(job: archive_module.StudyJob) -> Made:
        nonlocal n_made
        n_made += 1
        if n_made == 5:
            raise KeyboardInterrupt
        return make_study(job)

    with monkeypatch.context() as patch:
        patch.setattr(archive_module, "make_study", stopping)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, "store")
    journal = tmp_path / "store" / JOURNAL
    journal.write_bytes(journal.read_bytes()[: -lost or None])
    again, whole = made(tmp_path, "store"), archives["store"]
    assert (again / "labels.csv").read_bytes() == (whole / "labels.csv").read_bytes()
    for name in ("manifest.parquet", "items.jsonl"):
        assert (again / "store" / name).read_bytes() == (whole / "store" / name).read_bytes()
