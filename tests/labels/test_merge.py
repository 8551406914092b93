"""Tables of persons and importers: one vocabulary, one key, no contradiction by silence."""

from __future__ import annotations

import csv
import re
import shlex

import pyarrow as pa
import pytest
import typer
from tests.labels.sets import (
    KEY,
    UID,
    fault,
    require_no_identifiers,
    run,
    store_of,
    variant,
    write_csv,
    write_slices,
)
from typer.testing import CliRunner

from headct.cli.app import app
from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError, UsageError
from headct.labels.merge import merge
from headct.labels.own import holds_identifiers, read_own
from headct.labels.table import Labelled, Row, read_splits, with_splits
from headct.labels.to_store import to_scans
from headct.store.labels import read_labels

NAMES = Pseudonymizer(KEY)


def table_of(*rows, key="scan_id"):
    made = [Row(f"c-{n}", f"p-{n}", values, line=i + 2) for i, (n, values) in enumerate(rows)]
    return Labelled(key, made, len(rows))


def merged(*tables, rule="error"):
    found = merge(tables, [f"{n}.csv" for n in range(len(tables))], rule)
    return {row.name: row.values for row in found.rows}, found.notes


def test_what_one_table_does_not_know_another_may():
    first = table_of((1, {"sdh": None, "ich": 1}), (2, {"sdh": 0, "ich": 0}))
    second = table_of((1, {"sdh": 1}), (3, {"fracture": 1}))
    values, notes = merged(first, second)
    assert values == {
        "c-1": {"sdh": 1, "ich": 1},
        "c-2": {"sdh": 0, "ich": 0},
        "c-3": {"fracture": 1},
    }
    assert "1 scans are in more than one table" in notes


@pytest.mark.parametrize(
    ("rule", "value"), [("present", 1), ("absent", 0), ("unknown", None), ("first", 0)]
)
def test_contradictions_are_an_error_or_settled_by_a_named_rule_and_counted(rule, value):
    tables = table_of((1, {"sdh": 0}), (2, {"sdh": 1})), table_of((2, {"sdh": 1}), (1, {"sdh": 1}))
    message = fault("1 rows contradict an earlier table", lambda: merged(*tables))
    assert "1.csv line 3: sdh" in message
    assert "--on-conflict" in message
    values, notes = merged(*tables, rule=rule)
    assert values["c-1"] == {"sdh": value}
    assert f"1 contradictions about sdh: {rule}" in notes


def test_a_subtype_without_its_parent_is_a_contradiction_of_tables():
    tables = table_of((1, {"ich": 0})), table_of((1, {"sdh": 1}))
    fault("not what the finding implies", lambda: merged(*tables))
    assert merged(*tables, rule="present")[0]["c-1"] == {"ich": 1, "sdh": 1}


def test_patients_sites_and_splits_must_agree():
    first = Labelled("scan_id", [Row("c-1", "p-1", {"sdh": 1}, "a", "train", 2)], 1)
    for other in (
        Row("c-1", "p-2", {}),
        Row("c-1", "p-1", {}, "b"),
        Row("c-1", "p-1", {}, "a", "test"),
    ):
        fault(
            "another (patient_id|site|split)",
            lambda other=other: merged(first, Labelled("scan_id", [other], 1)),
        )
    found = merge([first, Labelled("scan_id", [Row("c-1", "p-1", {"ich": 1})], 1)], ["a", "b"])
    assert found.rows == [Row("c-1", "p-1", {"sdh": 1, "ich": 1}, "a", "train", 2)]


def test_tables_with_different_keys_need_the_store():
    with pytest.raises(UsageError, match="scan_id, series_id") as caught:
        merged(table_of((1, {"sdh": 1})), table_of((1, {"sdh": 1}), key="series_id"))
    assert "--store" in caught.value.remedy


def test_a_table_of_ones_own_is_read_into_vocabulary_and_pseudonyms(tmp_path):
    path = write_csv(
        tmp_path / "own.csv",
        "study_uid,patient_id,site,split,Subdural Hematoma,brain tumour,Own",
        [f"{UID}.1,SECRET 1,a,train,1,,0", f"{UID}.2,SECRET 1,a,train,0,1,1"],
    )
    assert holds_identifiers(path)
    fault("'Own' is not in the vocabulary", lambda: read_own(path, NAMES))
    found = read_own(path, NAMES, keep=["Own"])
    assert found.key == "study_id"
    patient = NAMES.patient_id(patient_key("secret 1"))
    assert found.rows == [
        Row(
            NAMES.study_id(f"{UID}.1"), patient, {"sdh": 1, "mass": None, "Own": 0}, "a", "train", 2
        ),
        Row(NAMES.study_id(f"{UID}.2"), patient, {"sdh": 0, "mass": 1, "Own": 1}, "a", "train", 3),
    ]


@pytest.mark.parametrize(
    ("header", "rows", "match"),
    [
        ("patient_id,sdh", ["p-1,1"], "no column that says which scan"),
        ("scan_id,patient_id,SDH,subdural", ["c-1,p-1,1,1"], "two columns of the finding sdh"),
        ("scan_id,patient_id,sdh", ["c-1,p-1,yes"], "must be 1, 0 or nothing"),
        ("scan_id,patient_id,sdh", ["c-1,p-1,1", "c-1,p-1,1"], r"earlier row has \(line 3\)"),
        ("scan_id,patient_id,sdh", ["c-1,p-1,1", "c-2,,1"], r"without scan_id or .*\(line 3\)"),
        ("scan_id,patient_id", ["c-1,p-1"], "no findings"),
    ],
)
def test_faults_of_ones_own_table(tmp_path, header, rows, match):
    path = write_csv(tmp_path / "own.csv", header, rows)
    fault(match, lambda: read_own(path, None))


def manifest_of(patients, images=None):
    n = len(patients)
    return pa.table({
        "scan_id": [f"c-{i}" for i in range(n)],
        "series_id": [f"e-{i}" for i in range(n)],
        "study_id": [f"s-{i // 2}" for i in range(n)],
        "patient_id": patients,
        "hu_sha256": images or [f"sha{i}" for i in range(n)],
    })  # fmt: skip


def test_the_store_knows_the_patients_that_a_table_does_not_name(tmp_path):
    path = write_csv(tmp_path / "own.csv", "scan_id,sex,sdh", ["c-1,F,1", "c-2,M,0", "c-3,M,0"])
    own = read_own(path, None)
    assert own.notes == ["own.csv: not carried over: sex"]
    fault("3 rows name no patient", lambda: with_splits(own, read_splits("60,15,25"), "a"))
    known = to_scans([own], manifest_of(["p-0", "p-0", "p-1", "p-1"]), frozenset())[0]
    assert [row.patient_id for row in known.rows] == ["p-0", "p-1", "p-1"]


def test_labels_without_scans_and_scans_without_labels_are_counted():
    manifest = manifest_of([f"p-{i // 2}" for i in range(8)])
    rows = [Row(f"s-{i}", f"q-{i}", {"sdh": 1}) for i in (0, 1, 8, 9)]
    table = to_scans([Labelled("study_id", rows, 4)], manifest, frozenset({"s-9"}))[0]
    assert [row.name for row in table.rows] == ["c-0", "c-1", "c-2", "c-3"]
    assert table.key == "scan_id"
    assert table.notes == [
        "1 labels have no scan: ingest refused it",
        "1 labels have no scan in the store",
        "4 scans of the store have no label",
    ]
    fault(
        "none of the labels is about a scan",
        lambda: to_scans([Labelled("study_id", rows[2:], 2)], manifest, frozenset()),
    )


def test_scans_that_share_patient_study_or_image_get_one_patient_in_all_tables():
    manifest = manifest_of(
        ["a", "b", "c", "c", "d", "e", "f", "f"], images=["x", "1", "2", "3", "x", "5", "6", "7"]
    )
    by_scan = Labelled("scan_id", [Row(f"c-{i}", f"q-{i}", {"sdh": 1}) for i in (1, 2, 4)], 3)
    by_series = Labelled("series_id", [Row(f"e-{i}", f"r-{i}", {"sdh": 1}) for i in (0, 2, 6)], 3)
    first, second = to_scans([by_scan, by_series], manifest, frozenset())
    patients = {row.name: row.patient_id for row in (*first.rows, *second.rows)}
    # c-0 and c-1 are of one study, c-4 holds the image of c-0, c-2 and c-6 stand alone
    assert patients["c-0"] == patients["c-1"] == patients["c-4"] == "q-1"
    assert len(set(patients.values())) == 3
    assert "1 scans hold the same image as another: one split" in second.notes


def test_merge_from_the_command_line_with_a_store(head, key_file, tmp_path):
    for study in range(4):
        for number in (1, 2):
            series = variant(head, f"SECRET{study}", study, number)
            write_slices(tmp_path / "in" / f"{study}-{number}", series, "{}.dcm".format)
    store = store_of(tmp_path / "in", tmp_path / "store", key_file)
    rows = [f"{UID}.{n},SECRET{n},{n % 2},1" for n in range(4)]
    own = write_csv(tmp_path / "own.csv", "study_uid,patient_id,SDH,oedema", rows)
    rows = [f"{NAMES.series_id(f'{UID}.{n}.1')},p-{n:016x},rsna,,{n // 2}" for n in range(4)]
    other = write_csv(tmp_path / "other.csv", "series_id,patient_id,site,split,fracture", rows)
    out = tmp_path / "labels.csv"
    options = ["--store", store.path, "--key", key_file, "--split", "50,0,50", "--site", "mine"]
    answer = run("merge", own, other, *options, "--out", out)
    assert "8 rows read, 8 scans labelled" in answer.output
    assert "4 scans are in more than one table" in answer.output
    with out.open() as handle:
        written = list(csv.DictReader(handle))
    assert [row["fracture"] for row in written].count("") == 4, "the second series has none"
    labels = read_labels(out, store.manifest, findings=["sdh", "fracture"])
    assert len(labels) == 8
    assert set(labels.split) <= {"train", "test"}
    require_no_identifiers(answer.output, out.read_text())
    with pytest.raises(UsageError, match="different"):
        run("merge", own, other, "--key", key_file, "--out", out)
    with pytest.raises(UsageError, match="one of the tables"):
        run("merge", own, other, "--key", key_file, "--out", own)
    with pytest.raises(LabelError, match="8 rows have no split"):
        run("merge", own, other, "--store", store.path, "--key", key_file, "--out", out)


@pytest.mark.parametrize("verb", ["rsna", "cq500", "ct-ich", "bhsd", "records", "merge"])
def test_every_command_has_an_example_with_real_options(verb):
    answer = CliRunner().invoke(app, ["labels", verb, "--help"], env={"COLUMNS": "200"})
    text = re.sub(r"\s+", " ", answer.output)
    examples = re.findall(rf"headct labels {verb} (.*?\.csv)(?= [A-Z\u256d])", text)
    assert examples
    command = typer.main.get_command(app).commands["labels"].commands[verb]
    for example in examples:
        with command.make_context(verb, shlex.split(example)) as context:
            assert str(context.params["out"]).endswith(".csv")
