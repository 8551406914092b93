"""Diagnoses and dates -> labels: each part of a rule, bad tables, and nothing that identifies."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import date, timedelta

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
    write_slices,
)

from headct.config import to_toml
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import UsageError
from headct.labels.records import describe_reasons, read_records
from headct.labels.rule import load_rules, plain_code
from headct.labels.scan_dates import dates_of_dicom, dates_of_table
from headct.store.labels import read_labels

DAY = date(2021, 3, 14)
NAMES = Pseudonymizer(KEY)
RULES = """
follow_up_days = 30

[findings.ich]
icd10 = ["I60", "I61", "I62"]
icd9 = ["430", "431", "432"]
days = [-2, 7]
prior_days = 100
grey_days = 20

[findings.sdh]
icd10 = ["I62.0"]
icd9 = ["432.1"]
days = [-2, 7]
prior_days = 100
grey_days = 20
exclude = [
  { name = "unspecified-bleed", icd10 = ["I62.9"], days = [-2, 30], blocks = "absent" },
  { name = "operated", icd9 = ["V45.2"], days = [-1000, 0], blocks = "both" },
]

[findings.dementia]
icd10 = ["G30"]
days = [-36500, 90]
min_dates = 2
follow_up_days = 200
"""


def at(days):
    return (DAY + timedelta(days=days)).isoformat()


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return load_rules(path)


def records_of(tmp_path, diagnoses, scans=None):
    """Tables on disk; diagnoses are (patient, code, days from the scan, system)."""
    rows = [f"{p},{code},{at(days)},{system}" for p, code, days, system in diagnoses]
    patients = list(dict.fromkeys(p for p, *_ in diagnoses))
    scans = scans or [f"{p},{UID}.{n},{DAY}" for n, p in enumerate(patients)]
    return (
        write_csv(tmp_path / "diagnoses.csv", "patient_id,code,date,system", rows),
        write_csv(tmp_path / "scans.csv", "patient_id,study_uid,date", scans),
    )


def read(diagnoses, scans, rules):
    return read_records(diagnoses, dates_of_table(scans), rules, KEY)


def labels_of(tmp_path, rules, *events):
    """Labels and reasons of one scan, given (code, days from the scan[, system])."""
    rows = [("SECRET1", *event, "ICD-10")[:4] for event in events]
    labelled, reasons = read(*records_of(tmp_path, rows), rules)
    return labelled.rows[0].values, reasons[labelled.rows[0].name]


LATER = ("Z00.0", 300)


@pytest.mark.parametrize(
    ("events", "value", "reason"),
    [
        ([("I62.01", 0), LATER], 1, "code-in-window"),
        ([("i6201", 7)], 1, "code-in-window"),
        ([("432.1", -2, "ICD-9-CM")], 1, "code-in-window"),
        ([("I62.0", -3), LATER], None, "prior-diagnosis"),
        ([("I62.0", -102), LATER], None, "prior-diagnosis"),
        ([("I62.0", -103), LATER], 0, "follow-up-without-code"),
        ([("I62.0", 8), LATER], None, "grey-zone"),
        ([("I62.0", 27), LATER], None, "grey-zone"),
        ([("I62.0", 28), LATER], 0, "follow-up-without-code"),
        ([("I62.9", 1), LATER], None, "unspecified-bleed"),
        ([("I62.9", 1), ("I62.0", 1)], 1, "code-in-window"),
        ([("V45.2", -900, "ICD-9"), ("I62.0", 1)], None, "operated"),
        ([("I10", 29)], None, "no-follow-up"),
        ([("I10", 30)], 0, "follow-up-without-code"),
        ([("", 30, "contact")], 0, "follow-up-without-code"),
        ([("I10", -5)], None, "no-follow-up"),
    ],
)
def test_each_part_of_a_rule_decides_in_its_turn(tmp_path, rules, events, value, reason):
    values, reasons = labels_of(tmp_path, rules, *events)
    assert (values["sdh"], reasons["sdh"]) == (value, reason)


def test_a_subtype_makes_ich_present_and_an_absent_ich_its_subtypes(tmp_path, rules):
    narrow = rules.model_copy(
        update={
            "findings": rules.findings
            | {"ich": rules.findings["ich"].model_copy(update={"icd10": ("I60",)})}
        }
    )
    values, reasons = labels_of(tmp_path, narrow, ("I62.0", 1), LATER)
    assert (values["ich"], reasons["ich"]) == (1, "implied")
    values, reasons = labels_of(tmp_path, narrow, ("I62.9", 1), LATER)
    assert (values["ich"], values["sdh"], reasons["sdh"]) == (0, 0, "implied")


def test_a_chronic_diagnosis_counts_from_long_before_and_on_enough_dates(tmp_path, rules):
    assert labels_of(tmp_path, rules, ("G30.9", -4000), ("G30.1", -20))[0]["dementia"] == 1
    values, reasons = labels_of(tmp_path, rules, ("G30.9", -20), ("G30.1", -20), LATER)
    assert (values["dementia"], reasons["dementia"]) == (None, "too-few-dates")
    assert labels_of(tmp_path, rules, ("I10", 199))[1]["dementia"] == "no-follow-up"
    assert labels_of(tmp_path, rules, ("I10", 200))[0]["dementia"] == 0


def test_each_scan_of_a_patient_has_its_own_window(tmp_path, rules):
    diagnoses = [("SECRET1", "I62.0", 60, "ICD-10"), ("SECRET1", "I10", 400, "ICD-10")]
    scans = [f"SECRET1,{UID}.{n},{at(days)}" for n, days in enumerate((0, 60, 70, 170))]
    labelled, reasons = read(*records_of(tmp_path, diagnoses, scans), rules)
    by_name = {row.name: row for row in labelled.rows}
    rows = [by_name[NAMES.study_id(f"{UID}.{n}")] for n in range(4)]
    assert [row.values["sdh"] for row in rows] == [0, 1, None, 0]
    assert reasons[rows[2].name]["sdh"] == "prior-diagnosis"
    assert len({row.patient_id for row in rows}) == 1


def test_what_is_not_used_is_counted(tmp_path, rules):
    diagnoses = [("secret 1", "I62.0", 0, "ICD-10"), ("SECRET2", "I62.0", 0, "icd10")]
    scans = [f"SECRET 1,{UID}.1,{DAY}", f"SECRET3,{UID}.3,{DAY:%Y%m%d}", f"SECRET3,{UID}.3,{DAY}"]
    labelled, reasons = read(*records_of(tmp_path, diagnoses, scans), rules)
    assert labelled.n_read == 5
    assert labelled.notes == [
        "1 rows of scans repeat an earlier one: read once",
        "1 diagnoses are of patients without a scan: not used",
        "1 patients with a scan have no diagnosis",
    ]
    assert describe_reasons(labelled, reasons)[1] == (
        "sdh: 1 present (1 code-in-window), 0 absent, 1 unknown (1 no-record)"
    )


@pytest.mark.parametrize(
    ("diagnoses", "scans", "match"),
    [
        (["SECRET1,I62.0,2021-03-14,ICD-11"], None, r"ICD-9 or ICD-10.*\(line 2\)"),
        (["SECRET1,I62.0,2021-03-14,ICD-9"], None, r"1 row with a code.*\(line 2\)"),
        (["SECRET1,432.1,2021-03-14,ICD-10"], None, r"1 row with a code.*\(line 2\)"),
        (["SECRET1,8.45,2021-03-14,ICD-9"], None, r"1 row with a code.*\(line 2\)"),
        (["SECRET1,I62.0,14/03/2021,ICD-10"], None, r"date other than YYYY-MM-DD \(line 2\)"),
        (["SECRET1,,2021-03-14,ICD-10"], None, r"without patient_id, code.*\(line 2\)"),
        ([], [f"SECRET1,{UID}.1,2021-3-4"], r"date other than YYYY-MM-DD \(line 2\)"),
        ([], [f"SECRET1,{UID}.1,"], r"without patient_id, study_uid or date \(line 2\)"),
        (
            [],
            [f"SECRET1,{UID}.1,2021-03-04", f"SECRET2,{UID}.1,2021-03-04"],
            r"contradicts an earlier one about its study \(line 3\)",
        ),
    ],
)
def test_bad_rows_are_named_by_line_and_not_by_value(tmp_path, rules, diagnoses, scans, match):
    given = write_csv(
        tmp_path / "d.csv",
        "patient_id,code,date,system",
        [*diagnoses, "SECRET1,I10,2021-03-14,ICD-10"],
    )
    scans = write_csv(
        tmp_path / "s.csv",
        "patient_id,study_uid,date",
        scans or [f"SECRET1,{UID}.1,2021-03-14"],
    )
    message = fault(match, lambda: read(given, scans, rules))
    require_no_identifiers(message)
    assert "2021" not in message


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("findings.sdh.days=[7,-2]", "first day 7 is after the last -2"),
        ("findings.sdh.prior_day=3", "did you mean prior_days"),
        ('findings.sdh.icd9=["I62"]', "no codes of icd9: I62"),
        ("findings.ich={days=[0,1]}", "no codes"),
        ('findings.stone={days=[0,1],icd9=["430"]}', "not in the vocabulary of findings: stone"),
        ("findings.sdh.min_dates=0", "0 is below 1, the least"),
    ],
)
def test_rules_with_faults(tmp_path, change, match):
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    with pytest.raises(UsageError, match=match):
        load_rules(path, [change])


def test_the_rules_that_come_along(tmp_path):
    rules = load_rules("ten-findings")
    assert list(rules.findings) == [
        "ich", "iph", "ivh", "sah", "sdh", "edh", "mass", "hydrocephalus", "oedema", "dementia",
    ]  # fmt: skip
    again = tmp_path / "again.toml"
    again.write_text(to_toml(rules))
    assert load_rules(again) == rules
    bleeds = [rules.findings[name] for name in ("iph", "ivh", "sah", "sdh", "edh")]
    of_all = rules.findings["ich"]
    for system in ("icd9", "icd10"):
        whole = tuple(code.replace(".", "") for code in getattr(of_all, system))
        for code in (c for rule in bleeds for c in getattr(rule, system)):
            assert code == "772.1" or code.replace(".", "").startswith(whole), code
    with pytest.raises(UsageError, match="no recipe file"):
        load_rules("eleven-findings")
    with pytest.raises(UsageError, match="unknown key"):
        load_rules("ten-findings", ["follow=3"])


def test_codes_are_told_from_other_text():
    assert plain_code("icd10", "s06.5x0a") == "S065X0A"
    assert plain_code("icd10", "F00.1*") == "F001"
    assert plain_code("icd9", "E812.0") == "E8120"
    for system, text in [
        ("icd9", "43"),
        ("icd10", "62.0"),
        ("icd10", "SECRET1"),
        ("icd9", "4.3.2"),
    ]:
        assert plain_code(system, text) is None


def test_from_records_to_labels_of_a_store_without_dates_or_identifiers(head, key_file, tmp_path):
    patients = [f"SECRET{n}" for n in range(6)]
    for n, patient in enumerate(patients):
        write_slices(tmp_path / "in" / str(n), variant(head, patient, n, 1), "{}.dcm".format)
    store = store_of(tmp_path / "in", tmp_path / "store", key_file)
    diagnoses = [
        (p, "S06.5X0A" if n % 2 else "I10", 0, "ICD-10-CM") for n, p in enumerate(patients)
    ]
    diagnoses += [(p, "Z00.00", 400, "ICD-10-CM") for p in patients[:5]]
    given, scans = records_of(tmp_path, diagnoses)
    out, why = tmp_path / "labels.csv", tmp_path / "why.csv"
    answer = run(
        "records", given, "--scans", scans, "--why", why, "--out", out, "--key", key_file,
        "--store", store.path, "--show-rules",
    )  # fmt: skip
    assert "sdh: 3 present (3 code-in-window)" in answer.output
    assert "17 rows read, 6 scans labelled" in answer.output
    labels = read_labels(out, store.manifest, findings=["ich", "sdh"])
    assert len(labels) == 6
    named = write_csv(
        tmp_path / "named.csv",
        "patient_id,sdh",
        [f"{p.lower()},{p[-1] in '135':d}" for p in patients],
    )
    by_patient = read_labels(named, store.manifest, KEY)
    assert by_patient.values[:, 0].tolist() == [0, 1] * 3, "a raw PatientID finds its scans, too"
    assert sorted(labels.values[:, 1].tolist()) == [0, 0, 0, 1, 1, 1]
    with why.open() as handle:
        reasons = {(row["finding"], row["value"], row["reason"]) for row in csv.DictReader(handle)}
    assert ("dementia", "", "no-follow-up") in reasons
    for text in (answer.output, out.read_text(), why.read_text()):
        require_no_identifiers(text)
        assert "2021" not in text
        assert "2022" not in text


@pytest.fixture
def archive(head, tmp_path):
    """A study of two series over midnight, one of another patient, one without a patient."""
    for patient, study, number, days in [
        ("SECRET0", 0, 1, 1), ("SECRET0", 0, 2, 0), ("SECRET1", 1, 1, 5), ("", 2, 1, 5)
    ]:  # fmt: skip
        series = variant(head, patient, study, number)
        day = (DAY + timedelta(days=days)).strftime("%Y%m%d")
        series = replace(series, header=replace(series.header, date=day))
        write_slices(tmp_path / "in" / f"{study}-{number}", series, "{}.dcm".format)
    return tmp_path / "in"


def test_headers_can_say_who_and_when(archive, rules, tmp_path):
    found = dates_of_dicom([archive])
    assert {uid: scan.day for uid, scan in found.studies.items()} == {
        f"{UID}.0": DAY.toordinal(),
        f"{UID}.1": DAY.toordinal() + 5,
    }
    assert found.notes == ["1 series name no patient, no study or no acquisition date: left out"]
    require_no_identifiers(repr(found))
    diagnoses = [("secret0", "I62.0", 7, "ICD-10"), ("SECRET1", "I62.0", 13, "ICD-10")]
    given, _ = records_of(tmp_path, diagnoses)
    out = tmp_path / "labels.csv"
    rule_file = tmp_path / "rules.toml"
    key = tmp_path / "key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    answer = run(
        "records", given, "--dicom", archive, "--rules", rule_file, "--out", out, "--key", key
    )
    assert "sdh: 1 present (1 code-in-window), 0 absent, 1 unknown (1 grey-zone)" in answer.output
    with pytest.raises(UsageError, match="--scans or --dicom"):
        run("records", given, "--out", out)


def test_a_study_of_two_patients_is_an_error(archive, head):
    write_slices(archive / "more", variant(head, "SECRET9", 1, 2), "{}.dcm".format)
    message = fault("1 studies of two patients", lambda: dates_of_dicom([archive]))
    require_no_identifiers(message)
