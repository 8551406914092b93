"""CT-ICH and BHSD, in their published folders, with images that ingest takes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from tests.labels.sets import (
    KEY,
    fault,
    require_no_identifiers,
    run,
    store_of,
    variant,
    write_csv,
)

from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import UsageError
from headct.labels.bhsd import CLASSES, read_bhsd, read_classes
from headct.labels.ct_ich import COLUMNS, TABLE, read_ct_ich
from headct.store.labels import read_labels
from headct.volume.nifti import write_nifti
from headct.volume.volume import Volume


def write_image(path, head, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, Volume(variant(head, "x", number, 0).hu, head.affine_zyx))


def slice_rows(patient, n, bleeds=(), fracture=()):
    """Rows of a scan: `bleeds` are (slice, column) pairs, slices count from 1."""
    rows = []
    for place in range(1, n + 1):
        types = {column for number, column in bleeds if number == place}
        cells = [str(int(column in types)) for column in COLUMNS[2:7]]
        cells += [str(int(not types)), str(int(place in fracture))]
        rows.append(",".join([str(patient), str(place), *cells]))
    return rows


@pytest.fixture(scope="module")
def ct_ich(tmp_path_factory, head):
    root = tmp_path_factory.mktemp("ct-ich")
    n = head.hu.shape[0]
    rows = []
    for patient in (49, 50, 51, 52):
        write_image(root / "ct_scans" / f"{patient:03d}.nii", head, patient)
    rows += slice_rows(49, n, [(3, "Subdural"), (4, "Subdural"), (4, "Epidural")])
    rows += slice_rows(50, n, fracture=(7,))
    rows += slice_rows(51, n, [(n, "Intraventricular")])
    rows += slice_rows(52, n)
    write_csv(root / TABLE, ",".join(COLUMNS), rows)
    return root


def test_ct_ich_from_the_published_tree_to_labels_of_a_store(ct_ich, key_file, tmp_path):
    store = store_of(ct_ich / "ct_scans", tmp_path / "store", key_file)
    out = tmp_path / "labels.parquet"
    answer = run("ct-ich", ct_ich, "--out", out, "--key", key_file, "--store", store.path)
    assert "4 scans labelled" in answer.output
    assert "have no label" not in answer.output
    names = ["ich", "sdh", "edh", "ivh", "fracture"]
    labels = read_labels(out, store.manifest, findings=names)
    assert sorted(map(tuple, labels.values.tolist())) == [
        (0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1),
        (1, 0, 0, 1, 0),
        (1, 1, 1, 0, 0),
    ]
    require_no_identifiers(answer.output)


def test_slices_that_the_table_lacks_leave_absent_findings_unknown(ct_ich, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "ct_scans").symlink_to(ct_ich / "ct_scans")
    rows = (ct_ich / TABLE).read_text().splitlines()[1:]
    kept = [r for r in rows if not r.startswith(("49,9,", "52,"))]
    write_csv(root / TABLE, ",".join(COLUMNS), [*kept, *slice_rows(99, 3), kept[0]])
    found = read_ct_ich(root, KEY)
    assert "1 rows repeat an earlier one: read once" in found.notes
    assert "1 scans are not in the table: left out" in found.notes
    assert "1 scans of the table have no file" in found.notes
    assert "1 scans have other slices than the table: nothing is absent there" in found.notes
    assert len(found.rows) == 3
    partly = next(row.values for row in found.rows if row.values["edh"] == 1)
    assert partly == {
        "ich": 1, "ivh": None, "iph": None, "sah": None, "edh": 1, "sdh": 1, "fracture": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (["49,1,0,0,0,0,1,1,0"], r"1 row with a bleed and No_Hemorrhage.*\(line 2\)"),
        (["49,1,0,0,0,0,0,1,0", "49,2,0,0,0,0,0,0,0"], r"or with neither \(line 3\)"),
        (["49,1,0,0,0,0,0,1,"], r"other than 0 and 1 \(line 2\)"),
        (["49,1,0,0,0,0,0,1,0", "49,1,0,0,0,0,1,0,0"], r"contradicts an earlier one.*\(line 3\)"),
        (["49a,1,0,0,0,0,0,1,0"], r"without a patient and slice number \(line 2\)"),
        (["49,1,0,0"], r"more or fewer fields"),
    ],
)
def test_faults_of_the_table_of_ct_ich(tmp_path, rows, match):
    (tmp_path / "ct_scans").mkdir()
    write_csv(tmp_path / TABLE, ",".join(COLUMNS), rows)
    fault(match, lambda: read_ct_ich(tmp_path, KEY))


def test_folders_that_are_no_ct_ich_and_no_bhsd(tmp_path):
    fault("no CT-ICH set", lambda: read_ct_ich(tmp_path, KEY))
    fault("no BHSD set", lambda: read_bhsd(tmp_path, KEY))


BHSD = {"ID_0a_ID_1": (2, 3), "ID_0a_ID_2": (), "ID_0b_ID_3": (5,), "ID_0c_ID_4": (1, 4)}
"""Numbers in the mask, by name; two studies are of one patient."""


def write_mask(path, shape_zyx, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(shape_zyx[::-1], np.uint8)
    for number in numbers:
        mask[number, 5, 5] = number
    nib.save(nib.Nifti1Image(mask, np.eye(4)), path)


@pytest.fixture(scope="module")
def bhsd(tmp_path_factory, head):
    root = tmp_path_factory.mktemp("label_192")
    for n, (name, numbers) in enumerate(BHSD.items()):
        write_image(root / "images" / f"{name}.nii.gz", head, n)
        write_mask(root / "ground truths" / f"{name}.nii.gz", head.hu.shape, numbers)
    return root


def test_bhsd_from_the_published_tree_to_labels_of_a_store(bhsd, key_file, tmp_path):
    store = store_of(bhsd / "images", tmp_path / "store", key_file)
    out = tmp_path / "labels.csv"
    answer = run("bhsd", bhsd, "--out", out, "--key", key_file)
    assert "4 scans labelled" in answer.output
    assert "numbers in the masks are taken for: 1 edh, 2 iph, 3 ivh, 4 sah, 5 sdh" in answer.output
    labels = read_labels(out, store.manifest)
    assert labels.findings == ("ich", "iph", "ivh", "sah", "sdh", "edh")
    assert sorted(map(tuple, labels.values.tolist())) == [
        (0, 0, 0, 0, 0, 0),
        (1, 0, 0, 0, 1, 0),
        (1, 0, 0, 1, 0, 1),
        (1, 1, 1, 0, 0, 0),
    ]
    patients = {line.split(",")[1] for line in out.read_text().splitlines()[1:]}
    names = Pseudonymizer(KEY)
    in_dicom = {names.patient_id(patient_key(name)) for name in ("ID_0a", "ID_0b", "ID_0c")}
    assert patients == in_dicom, "two studies are of one patient, RSNA's patients have these names"
    assert len(set(labels.patient_id)) == 3
    require_no_identifiers(answer.output, out.read_text())


def test_other_numbers_can_be_said(bhsd):
    classes = read_classes("1=SDH, 2=EDH,3=ivh,4=sah,5=intraparenchymal")
    assert classes == {1: "sdh", 2: "edh", 3: "ivh", 4: "sah", 5: "iph"}
    found = read_bhsd(bhsd, KEY, classes)
    assert sum(row.values["iph"] for row in found.rows) == 1
    for text in ("1", "1=sdh,2=sdh", "0=sdh", "x=sdh"):
        with pytest.raises(UsageError, match="--classes"):
            read_classes(text)
    fault("not in the vocabulary", lambda: read_classes("1=pneumonia"))
    fault("other numbers than 0, 1, 2", lambda: read_bhsd(bhsd, KEY, {1: "edh", 2: "iph"}))
    assert list(CLASSES.values()) == ["edh", "iph", "ivh", "sah", "sdh"]


def test_images_without_masks_and_masks_without_images_are_counted(bhsd, head, tmp_path):
    write_image(tmp_path / "images" / "ID_1_ID_1.nii.gz", head, 1)
    write_image(tmp_path / "images" / "ID_1_ID_2.nii.gz", head, 2)
    write_mask(tmp_path / "ground truths" / "ID_1_ID_1.nii.gz", head.hu.shape, ())
    write_mask(tmp_path / "ground truths" / "ID_1_ID_3.nii.gz", head.hu.shape, ())
    found = read_bhsd(tmp_path, KEY)
    assert len(found.rows) == 1
    assert {"1 images have no mask: left out", "1 masks have no image"} <= set(found.notes)


def test_masks_and_images_that_cannot_be_read(head, tmp_path):
    write_image(tmp_path / "images" / "ID_1_ID_1.nii.gz", head, 1)
    mask = tmp_path / "ground truths" / "ID_1_ID_1.nii.gz"
    write_mask(mask, (3, 16, 16), ())
    fault("another shape", lambda: read_bhsd(tmp_path, KEY))
    mask.write_bytes(mask.read_bytes()[:40])
    fault("a mask cannot be read", lambda: read_bhsd(tmp_path, KEY))


def test_one_image_under_two_names_counts_once_or_contradicts(head, tmp_path):
    for name in ("ID_1_ID_1", "ID_1_ID_2"):
        write_image(tmp_path / "images" / f"{name}.nii.gz", head, 1)
        write_mask(tmp_path / "ground truths" / f"{name}.nii.gz", head.hu.shape, (2,))
    found = read_bhsd(tmp_path, KEY)
    assert len(found.rows) == 1
    assert "1 scans come twice with the same labels: once each" in found.notes
    write_mask(tmp_path / "ground truths" / "ID_1_ID_2.nii.gz", head.hu.shape, (3,))
    fault("1 scans come twice, with different labels", lambda: read_bhsd(tmp_path, KEY))
