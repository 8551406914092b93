from __future__ import annotations

import csv
import shutil
import warnings

import pytest
from tests.labels.sets import (
    KEY,
    UID,
    fault,
    require_no_identifiers,
    run,
    store_of,
    variant,
    write_csv,
)

from headct.dicom.pseudonym import Pseudonymizer
from headct.labels.rsna import TYPES, read_rsna, read_slice_labels
from headct.phantom.files import edited
from headct.store.labels import read_labels, refused_ids

N = 8
BLEEDS = {1: ("subdural",), 2: ("subdural", "epidural"), 5: ("intraparenchymal",)}
BLEEDS |= {6: ("subarachnoid",), 7: ("intraventricular",)}
"""Types in the third slice, by series; the others have none."""


def slice_name(number, z):
    return f"ID_{number:05x}{z:04x}"


@pytest.fixture(scope="module")
def rsna(tmp_path_factory, head):
    """stage_2_train/ID_*.dcm in one flat folder, and stage_2_train.csv."""
    root = tmp_path_factory.mktemp("rsna")
    (root / "stage_2_train").mkdir()
    rows = ["ID,Label"]
    for number in range(N):
        series = variant(head, f"ID_SECRET{number // 2}", number, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the set's UIDs are no UIDs

            def rename(image, z, number=number):
                image.SOPInstanceUID = slice_name(number, z)
                image.file_meta.MediaStorageSOPInstanceUID = slice_name(number, z)

            files = edited(series.files(), rename)
        for z, data in enumerate(files):
            name = slice_name(number, z)
            (root / "stage_2_train" / f"{name}.dcm").write_bytes(data)
            types = BLEEDS.get(number, ()) if z == 2 else ()
            for kind in TYPES:
                present = kind in types or (kind == "any" and bool(types))
                rows.append(f"{name}_{kind},{int(present)}")
    rows += rows[1:7]  # the published table, too, has rows twice
    (root / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    return root


def test_from_the_published_tree_to_labels_of_the_scans_of_a_store(rsna, key_file, tmp_path):
    store = store_of(rsna / "stage_2_train", tmp_path / "store", key_file)
    out = tmp_path / "labels.csv"
    answer = run(
        "rsna", rsna / "stage_2_train.csv", "--dicom", rsna / "stage_2_train", "--out", out,
        "--key", key_file,
    )  # fmt: skip
    assert answer.exit_code == 0
    assert f"{N} series labelled" in answer.output
    assert "6 rows repeat an earlier one: read once" in answer.output
    assert "sdh: 2 present, 6 absent, 0 unknown" in answer.output
    labels = read_labels(out, store.manifest, refused=refused_ids(store.path / "items.jsonl"))
    assert len(labels) == N == len(store)
    assert labels.findings == ("ich", "iph", "ivh", "sah", "sdh", "edh")
    names = Pseudonymizer(KEY)
    series = dict(
        zip(
            store.manifest["scan_id"].to_pylist(),
            store.manifest["series_id"].to_pylist(),
            strict=True,
        )
    )
    place = {series[scan_id]: n for n, scan_id in enumerate(labels.scan_id)}
    for number in range(N):
        values = labels.values[place[names.series_id(f"{UID}.{number}.1")]].tolist()
        types = BLEEDS.get(number, ())
        expected = [number in BLEEDS, *(kind in types for kind in TYPES[1:])]
        assert values == [int(value) for value in expected]
    assert len(set(labels.patient_id)) == N // 2
    require_no_identifiers(answer.output, out.read_text())


def test_slices_that_only_table_or_folder_has_are_counted_and_nothing_is_absent_by_silence(
    rsna, tmp_path
):
    lines = (rsna / "stage_2_train.csv").read_text().splitlines()
    gone = slice_name(0, 4)
    more = [f"ID_nowhere_{kind},0" for kind in TYPES]
    table = write_csv(tmp_path / "t.csv", lines[0], [x for x in lines[1:] if gone not in x] + more)
    found = read_rsna(table, [rsna / "stage_2_train"], KEY)
    assert "1 labelled slices have no DICOM file" in found.notes
    assert any(
        "DICOM slices have no label" in note and note.startswith("1 ") for note in found.notes
    )
    by_name = {row.name: row.values for row in found.rows}
    names = Pseudonymizer(KEY)
    assert set(by_name[names.series_id(f"{UID}.0.1")].values()) == {None}
    assert by_name[names.series_id(f"{UID}.3.1")]["ich"] == 0


def test_a_series_without_labels_is_left_out_and_counted(rsna, tmp_path):
    lines = (rsna / "stage_2_train.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if "ID_00003" not in line]
    table = write_csv(tmp_path / "t.csv", lines[0], kept)
    found = read_rsna(table, [rsna / "stage_2_train"], KEY)
    assert len(found.rows) == N - 1
    assert "1 series have no labelled slice: left out" in found.notes


def test_a_series_that_ingest_refuses_is_left_out_and_counted(rsna, key_file, tmp_path):
    shutil.copytree(rsna / "stage_2_train", tmp_path / "in")
    damaged = tmp_path / "in" / f"{slice_name(3, 5)}.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-900])
    store = store_of(tmp_path / "in", tmp_path / "store", key_file)
    out = tmp_path / "labels.csv"
    options = ["--dicom", tmp_path / "in", "--key", key_file, "--out", out]
    answer = run("rsna", rsna / "stage_2_train.csv", *options)
    assert "1 series have an unreadable slice: nothing is absent there" in answer.output
    labels = read_labels(out, store.manifest, refused=refused_ids(store.path / "items.jsonl"))
    assert len(labels) == N - 1
    assert "1 rows left out: ingest refused their scans" in labels.notes
    answer = run("rsna", rsna / "stage_2_train.csv", *options, "--store", store.path)
    assert "1 labels have no scan: ingest refused it" in answer.output


ROWS = [f"ID_a_{kind},0" for kind in TYPES]


@pytest.mark.parametrize(
    ("header", "rows", "match"),
    [
        ("ID,Label", [*ROWS, "ID_a_any,1"], r"1 row that contradicts an earlier one \(line 8\)"),
        ("ID,Label", [*ROWS, "ID_b_fracture,1"], r"1 row that is no slice.*\(line 8\)"),
        ("ID,Label", ["any,1", *ROWS, "ID_b_any,"], r"2 rows that is no slice.*\(line 2, 9\)"),
        ("ID,Label", [*ROWS, "ID_b_any"], r"1 row with more or fewer fields.*\(line 8\)"),
        ("ID,Labels", ROWS, "lacks the column Label"),
        ("ID,Label,Sex", [f"{row},F" for row in ROWS], "unknown column Sex"),
        ("ID,Label", [], "no rows"),
    ],
)
def test_faults_of_the_table(tmp_path, header, rows, match):
    table = write_csv(tmp_path / "t.csv", header, rows)
    message = fault(match, lambda: read_slice_labels(table))
    require_no_identifiers(message)


def test_a_type_without_any_is_taken_for_a_bleed(rsna, tmp_path):
    text = (rsna / "stage_2_train.csv").read_text()
    table = tmp_path / "t.csv"
    table.write_text(text.replace(f"{slice_name(1, 2)}_any,1", f"{slice_name(1, 2)}_any,0"))
    found = read_rsna(table, [rsna / "stage_2_train"], KEY)
    assert "1 slices have a type of bleed but any = 0: taken for a bleed" in found.notes
    name = Pseudonymizer(KEY).series_id(f"{UID}.1.1")
    assert next(row for row in found.rows if row.name == name).values["ich"] == 1


def test_columns_of_the_table(rsna, key_file, tmp_path):
    out = tmp_path / "labels.csv"
    options = ["--dicom", rsna / "stage_2_train", "--key", key_file]
    run("rsna", rsna / "stage_2_train.csv", *options, "--out", out, "--split", "external")
    with out.open() as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0])[:4] == ["series_id", "patient_id", "site", "split"]
    assert {row["split"] for row in rows} == {"test"}
    assert {row["site"] for row in rows} == {"rsna"}
