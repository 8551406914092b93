"""NIfTI in a BIDS folder: subjects are patients, sessions are studies, sidecars say how."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from headct.dicom.index import index_paths
from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.ingest.bids import nifti_scans
from headct.ingest.criteria import Criteria, has_contrast
from headct.ingest.pipeline import ingest
from headct.labels.nifti_set import nifti_name
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.volume.nifti import write_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series

SIDECAR = {
    "Modality": "CT",
    "Manufacturer": "Siemens",
    "ConvolutionKernel": ["J40s", "3"],
    "KVP": 120,
    "PatientName": "Secretname^A",
    "InstitutionName": "Secret Hospital",
}


@pytest.fixture
def bids(archive: Path, tmp_path: Path) -> Path:
    """Two subjects, the first with two sessions."""
    root = tmp_path / "bids"
    series = sorted({p.parent for p in archive.rglob("IM*.dcm") if "Patient4" not in str(p)})
    places = [
        "sub-01/ses-a/ct/sub-01_ses-a_ct",
        "sub-01/ses-b/ct/sub-01_ses-b_ct",
        "sub-02/ct/sub-02_ct",
    ]
    for folder, place in zip(series, places, strict=False):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(root / f"{place}.nii.gz", read_series(folder))
        (root / f"{place}.json").write_text(json.dumps(SIDECAR))
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t71\tF\nsub-02\tn/a\tM\n"
    )
    return root


def test_subjects_are_patients_and_sessions_studies(
    bids: Path, key_file: Path, tmp_path: Path
) -> None:
    ingest([bids], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key_file)
    rows = open_store(tmp_path / "store").manifest.to_pylist()
    assert len(rows) == 3
    patients = {row["patient_id"] for row in rows}
    assert len(patients) == 2
    assert len({row["study_id"] for row in rows}) == 3
    assert {row["kernel"] for row in rows} == {"J40s\\3"}
    assert {(row["manufacturer"], row["kvp"], row["modality"]) for row in rows} == {
        ("Siemens", 120.0, "CT")
    }
    by_sex = {row["sex"]: row["age_years"] for row in rows}
    assert by_sex == {"F": 71.0, "M": None}
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"Secret" not in data
            assert b"sub-0" not in data


def test_what_a_sidecar_says_decides(bids: Path, key_file: Path, tmp_path: Path) -> None:
    (path,) = bids.glob("sub-02/ct/*.json")
    path.write_text(json.dumps(SIDECAR | {"Modality": "MR"}))
    (path,) = bids.glob("sub-01/ses-a/ct/*.json")
    path.write_text(json.dumps(SIDECAR | {"ContrastBolusAgent": "Iohexol 350"}))
    criteria = Criteria(refuse=("contrast",))
    ingest([bids], tmp_path / "store", PRESETS["demo"], criteria, jobs=0, key_file=key_file)
    items = read_jsonl(tmp_path / "store" / "items.jsonl")
    found = sorted(item["reason"] for item in items if item["status"] == "refused")
    assert found == ["contrast", "not-ct"]


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "{", '{"KVP": {"a": 1}, "Modality": [["CT"]]}', "\xff"]
)
def test_a_sidecar_that_is_none_takes_nothing_away(
    bids: Path, key_file: Path, tmp_path: Path, text: str
) -> None:
    for path in bids.rglob("*_ct.json"):
        path.write_bytes(text.encode("latin-1"))
    ingest([bids], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key_file)
    assert len(open_store(tmp_path / "store")) == 3


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with the name of a scan in it, for what lies beside it."""
    folder = tmp_path / "sub-01" / "ct"
    folder.mkdir(parents=True)
    (folder / "sub-01_ct.nii").touch()
    return folder


@pytest.mark.parametrize("same", [True, False])
def test_a_plain_file_beside_its_compressed_self_is_one_scan(
    bids: Path, key_file: Path, tmp_path: Path, same: bool
) -> None:
    folder = tmp_path / "flat"
    folder.mkdir()
    packed = folder / "head.nii.gz"
    packed.write_bytes((bids / "sub-02/ct/sub-02_ct.nii.gz").read_bytes())
    plain = bytearray(gzip.decompress(packed.read_bytes()))
    plain[-1] ^= 0 if same else 1
    (folder / "head.nii").write_bytes(plain)
    tally = ingest([folder], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key_file)
    assert tally.reasons["skipped", "twin"] == same
    store = open_store(tmp_path / "store")
    assert len(store) == 2 - same
    names = Pseudonymizer(load_key(key_file))
    assert {nifti_name(p, names) for p in folder.iterdir()} == set(store.scan_ids)


def test_the_ingredient_alone_says_contrast(bare: Path) -> None:
    (bare / "sub-01_ct.json").write_text('{"ContrastBolusIngredient": "IODINE"}')
    (scan,) = nifti_scans(index_paths([bare]))
    assert has_contrast(scan.header, Criteria())


def test_what_lies_beside_a_scan_in_an_archive_is_asked_too(bare: Path, tmp_path: Path) -> None:
    (bare / "sub-01_ct.json").write_text('{"KVP": 99}')
    (bare.parents[1] / "participants.tsv").write_text("participant_id\tage\nsub-01\t71\n")
    box, spool = tmp_path / "box.zip", tmp_path / "spool"
    spool.mkdir()
    with zipfile.ZipFile(box, "w") as archive:
        for path in (bare / "sub-01_ct.nii", bare / "sub-01_ct.json"):
            archive.write(path, path.relative_to(tmp_path))
        archive.write(tmp_path / "participants.tsv", "participants.tsv")
    index = index_paths([box], spool=spool)
    (scan,) = nifti_scans(index)
    assert (scan.header.kvp, scan.header.age_years) == (99, 71)
    assert index.n_files == 3


def test_a_sidecar_nested_without_end_does_not_stop_the_run(bare: Path) -> None:
    (bare / "sub-01_ct.json").write_text("[" * 100_000)
    assert len(nifti_scans(index_paths([bare]))) == 1


def test_a_table_of_one_endless_field_does_not_stop_the_run(bare: Path) -> None:
    table = bare.parents[1] / "participants.tsv"
    table.write_text("participant_id\tage\nsub-01\t" + "9" * 200_000)
    assert len(nifti_scans(index_paths([bare]))) == 1


def test_pipes_beside_a_scan_are_not_waited_for(bare: Path) -> None:
    os.mkfifo(bare / "sub-01_ct.json")
    os.mkfifo(bare.parents[1] / "participants.tsv")
    assert len(nifti_scans(index_paths([bare]))) == 1


def test_nifti_is_known_by_its_content_and_half_a_pair_is_refused(
    bids: Path, key_file: Path, tmp_path: Path
) -> None:
    (path,) = bids.glob("sub-02/ct/*.nii.gz")
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    path.unlink()
    nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "a.nii")
    (tmp_path / "in").mkdir()
    (tmp_path / "a.nii").rename(tmp_path / "in" / "scan")
    nib.save(nib.Nifti1Pair(voxels, image.affine), tmp_path / "in" / "b.img")
    ingest([tmp_path / "in"], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key_file)
    items = list(read_jsonl(tmp_path / "store" / "items.jsonl"))
    found = sorted(
        (item["status"], item["reason"]) for item in items if item["status"] != "flagged"
    )
    assert len(items) == 3
    assert ("refused", "unreadable") in found
    assert ("skipped", "not-dicom") in found
    assert len(open_store(tmp_path / "store")) == 1
