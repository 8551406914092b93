from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.store.labels import needs_key, read_labels, refused_ids

KEY = b"0123456789abcdef"
NAMES = Pseudonymizer(KEY)
N = 12


def manifest_of(**changes):
    columns = {
        "scan_id": [f"c-{i}" for i in range(N)],
        "patient_id": [NAMES.patient_id(patient_key(f"P{i}")) for i in range(N)],
        "study_id": [NAMES.study_id(f"1.2.{i}") for i in range(N)],
        "series_id": [f"e-{i}" for i in range(N)],
        "row": list(range(N))[::-1],
        "hu_sha256": [f"sha{i}" for i in range(N)],
        "site": ["hospital-a"] * N,
    }
    return pa.table(columns | changes)


def table(tmp_path, rows=None, header="study_uid,sdh,iph"):
    rows = [f"1.2.{i},{i % 2},{int(i < 3)}" for i in range(N)] if rows is None else rows
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def fault(tmp_path, match, rows=None, header="study_uid,sdh,iph", manifest=None, **more):
    with pytest.raises(LabelError, match=match) as caught:
        read_labels(table(tmp_path, rows, header), manifest or manifest_of(), KEY, **more)
    return str(caught.value)


def rows_with(**changes):
    rows = [[f"1.2.{i}", str(i % 2), str(int(i < 3))] for i in range(N)]
    for position, value in changes.items():
        line, column = (int(number) for number in position[1:].split("_"))
        rows[line][column] = value
    return [",".join(row) for row in rows]


def test_rows_are_joined_to_scans_by_the_pseudonym_of_their_study(tmp_path):
    labels = read_labels(table(tmp_path), manifest_of(), KEY)
    assert labels.findings == ("sdh", "iph")
    assert labels.scan_id.tolist() == [f"c-{i}" for i in range(N)]
    assert labels.row.tolist() == list(range(N))[::-1]
    np.testing.assert_array_equal(labels.values[:, 0], np.arange(N) % 2)
    assert set(labels.site) == {"hospital-a"}


@pytest.mark.parametrize("key", ["scan_id", "series_id", "study_id", "patient_id"])
def test_other_keys_give_the_same_labels(tmp_path, key):
    names = {"scan_id": "c-{}", "series_id": "e-{}", "patient_id": "p{}"}.get(key)
    ids = [names.format(i) if names else NAMES.study_id(f"1.2.{i}") for i in range(N)]
    rows = [f"{name},{i % 2},{int(i < 3)}" for i, name in enumerate(ids)]
    labels = read_labels(table(tmp_path, rows, f"{key},sdh,iph"), manifest_of(), KEY)
    expected = read_labels(table(tmp_path), manifest_of(), KEY)
    np.testing.assert_array_equal(labels.values, expected.values)
    assert labels.scan_id.tolist() == expected.scan_id.tolist()


def test_nothing_and_minus_one_are_unknown_not_absent(tmp_path):
    rows = rows_with(_4_1="", _5_1="-1", _6_1="0.0", _7_1="1.0")
    values = read_labels(table(tmp_path, rows), manifest_of(), KEY).values
    assert values[4:8, 0].tolist() == [-1, -1, 0, 1]


def test_parquet_and_semicolons_read_as_csv_does(tmp_path):
    expected = read_labels(table(tmp_path), manifest_of(), KEY)
    semicolons = table(tmp_path, [r.replace(",", ";") for r in rows_with()], "study_uid;sdh;iph")
    np.testing.assert_array_equal(
        read_labels(semicolons, manifest_of(), KEY).values, expected.values
    )
    columns = {
        "study_uid": [f"1.2.{i}" for i in range(N)],
        "sdh": [i % 2 for i in range(N)],
        "iph": [None if i == 5 else float(i < 3) for i in range(N)],
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    values = read_labels(tmp_path / "labels.parquet", manifest_of(), KEY).values
    assert values[5, 1] == -1
    np.testing.assert_array_equal(np.delete(values, 5, 0), np.delete(expected.values, 5, 0))


def test_a_study_with_two_scans_labels_both(tmp_path):
    manifest = manifest_of(study_id=[NAMES.study_id(f"1.2.{i // 2}") for i in range(N)])
    rows = [f"1.2.{i},{i % 2},{int(i < 3)}" for i in range(N // 2)]
    labels = read_labels(table(tmp_path, rows), manifest, KEY)
    assert len(labels) == N
    np.testing.assert_array_equal(labels.values[::2], labels.values[1::2])


def test_unknown_scans_are_counted_by_line_without_their_names(tmp_path):
    message = fault(tmp_path, "2 rows", rows_with(_0_0="1.9.1", _3_0="1.9.2"))
    assert "line 2, 5" in message
    assert "1.9" not in message


def test_rows_about_refused_scans_are_left_out_and_counted(tmp_path):
    items = tmp_path / "items.jsonl"
    refused = NAMES.study_id("1.9.1")
    items.write_text(
        f'{{"status": "refused", "study": "{refused}", "scan_id": null, "series": "e-1"}}\n'
        '{"status": "accepted", "study": "s-2", "scan_id": "c-0", "series": "e-2"}\n'
    )
    assert refused_ids(items) == {refused, "e-1"}
    labels = read_labels(
        table(tmp_path, rows_with(_0_0="1.9.1")), manifest_of(), KEY, refused=refused_ids(items)
    )
    assert len(labels) == N - 1
    assert any("1 rows left out: ingest refused" in note for note in labels.notes)


def test_missing_scans_can_be_allowed_but_not_most_of_them(tmp_path):
    labels = read_labels(
        table(tmp_path, rows_with(_0_0="1.9.1")), manifest_of(), KEY, allow_missing=True
    )
    assert len(labels) == N - 1
    rows = [row.replace("1.2.", "1.9.") for row in rows_with()]
    assert "key file" in _remedy(tmp_path, rows)


def _remedy(tmp_path, rows):
    with pytest.raises(LabelError) as caught:
        read_labels(table(tmp_path, rows), manifest_of(), KEY, allow_missing=True)
    return caught.value.remedy


def test_values_other_than_one_zero_and_nothing(tmp_path):
    message = fault(tmp_path, "iph: 2 values", rows_with(_1_2="2", _4_2="perhaps"))
    assert "line 3, 6" in message
    assert "perhaps" not in message


def test_one_class_only(tmp_path):
    rows = [f"1.2.{i},{i % 2},0" for i in range(N)]
    fault(tmp_path, r"iph \(0 present, 12 absent\)", rows)


def test_doubled_rows(tmp_path):
    fault(
        tmp_path,
        r"1 row with a study_uid that an earlier row has \(line 6\)",
        rows_with(_4_0="1.2.0"),
    )


def test_tables_that_are_no_tables(tmp_path):
    fault(tmp_path, "no rows", [])
    fault(tmp_path, "more or fewer fields", [*rows_with(), "1.2.3,1"])
    blank = rows_with(_8_1="left")
    blank[3:3] = ["", ",,"]
    fault(tmp_path, r"2 rows with nothing in it \(line 5, 6\)", blank)
    fault(tmp_path, r"sdh: 1 value \(line 10\)", [*rows_with(_8_1="left"), "", ",,"])
    fault(tmp_path, "which scan", header="who,sdh,iph")
    fault(tmp_path, "no findings", ["1.2.0,a"], header="study_uid,site")
    fault(tmp_path, "without a name", header="study_uid,sdh,sdh")
    fault(tmp_path, "without study_uid", rows_with(_2_0=""))
    with pytest.raises(LabelError, match="no label table"):
        read_labels(tmp_path / "absent.csv", manifest_of(), KEY)
    (tmp_path / "latin.csv").write_bytes(b"study_uid,\xf6dem\n1,1\n")
    with pytest.raises(LabelError, match="UTF-8"):
        read_labels(tmp_path / "latin.csv", manifest_of(), KEY)
    (tmp_path / "labels.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(LabelError, match="Parquet"):
        read_labels(tmp_path / "labels.parquet", manifest_of(), KEY)


def test_uids_need_the_key(tmp_path):
    with pytest.raises(LabelError, match="pseudonyms"):
        read_labels(table(tmp_path), manifest_of(), None)


def split_rows():
    return [f"{r},{('train', 'tune', 'test')[i % 3]}" for i, r in enumerate(rows_with())]


SPLIT_HEADER = "study_uid,sdh,iph,split"


def test_given_splits_are_kept(tmp_path):
    labels = read_labels(table(tmp_path, split_rows(), SPLIT_HEADER), manifest_of(), KEY)
    assert labels.positions("tune").tolist() == [1, 4, 7, 10]
    assert labels.take(labels.positions("tune")).scan_id.tolist() == ["c-1", "c-4", "c-7", "c-10"]


def test_a_patient_in_two_splits(tmp_path):
    manifest = manifest_of(patient_id=["p-0", "p-0", *[f"p-{i}" for i in range(2, N)]])
    fault(tmp_path, "1 patient in more", split_rows(), SPLIT_HEADER, manifest)


def test_a_patient_in_two_splits_by_the_tables_own_names(tmp_path):
    rows = [f"{row},{'same' if i < 2 else i}" for i, row in enumerate(split_rows())]
    fault(tmp_path, "1 patient in more", rows, SPLIT_HEADER + ",patient_id")


def test_one_image_under_two_names_in_two_splits(tmp_path):
    manifest = manifest_of(hu_sha256=["sha1", "sha1", *[f"sha{i}" for i in range(2, N)]])
    fault(tmp_path, "1 image under two names", split_rows(), SPLIT_HEADER, manifest)


def test_scans_that_share_a_named_patient_or_an_image_have_one_patient_name(tmp_path):
    images = ["sha1", "sha1", *[f"sha{i}" for i in range(2, N)]]
    nobody = manifest_of(patient_id=[""] * N, hu_sha256=images)
    rows = [
        f"1.2.{i},{int(i > 2)},{int(i < 3)},train,{'same' if i in (4, 6, 9) else ''}"
        for i in range(N)
    ]
    for manifest in (manifest_of(hu_sha256=images), nobody):
        path = table(tmp_path, rows, SPLIT_HEADER + ",patient_id")
        names = read_labels(path, manifest, KEY).patient_id
        assert len({names[i] for i in (4, 6, 9)}) == 1
        assert names[0] == names[1]
        assert len(set(names)) == N - 3
        assert "same" not in names, "a table may name patients by identifiers"
        assert set(names) <= set(manifest["patient_id"].to_pylist()) or manifest is nobody


def test_one_image_under_two_names_with_two_labels(tmp_path):
    manifest = manifest_of(hu_sha256=["sha1", "sha1", *[f"sha{i}" for i in range(2, N)]])
    message = fault(tmp_path, "1 image under two names, with sdh under one", manifest=manifest)
    assert "1.2." not in message
    labels = read_labels(table(tmp_path, rows_with(_1_1="")), manifest, KEY)
    assert labels.values[:2, 0].tolist() == [0, -1], "one of them unknown is no contradiction"


def test_scans_without_a_label_are_counted(tmp_path):
    labels = read_labels(table(tmp_path, rows_with()[3:]), manifest_of(), KEY, findings=["sdh"])
    assert "3 scans of the store have no label" in labels.notes
    assert not read_labels(table(tmp_path), manifest_of(), KEY, findings=["sdh"]).notes[:-1]


def test_a_split_of_another_name(tmp_path):
    rows = [row.replace("tune", "valid") for row in split_rows()]
    fault(tmp_path, "4 rows with a split other than train, tune, test", rows, SPLIT_HEADER)


def test_a_drawn_split_keeps_patients_and_equal_images_together(tmp_path):
    shared = np.array([f"p-{i // 3}" for i in range(N)])
    images = [f"sha{max(i, 5)}" for i in range(N)]
    manifest = manifest_of(patient_id=shared, hu_sha256=images)
    rows = [f"1.2.{i},{int(i < 6)},{int(i > 5)}" for i in range(N)]
    for seed in range(5):
        labels = read_labels(table(tmp_path, rows), manifest, KEY, seed=seed)
        for patient in set(shared):
            assert len(set(labels.split[shared == patient])) == 1
        assert len(set(labels.split[:6])) == 1


def test_a_drawn_split_follows_its_seed_and_its_shares():
    from headct.store.splits import draw_splits

    group = np.arange(1000)
    first, again, other = (draw_splits(group, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert [int((first == name).sum()) for name in ("train", "tune", "test")] == [600, 150, 250]


def test_some_findings_can_be_asked_for(tmp_path):
    path = table(
        tmp_path, rows_with(_0_1="left")
    )  # a column that is not asked for may hold anything
    labels = read_labels(path, manifest_of(), KEY, findings=["iph"])
    assert labels.findings == ("iph",)
    assert labels.values.shape == (N, 1)
    with pytest.raises(LabelError, match="no column for edh"):
        read_labels(path, manifest_of(), KEY, findings=["edh"])


@pytest.mark.parametrize(("key", "needed"), [("study_uid", True), ("scan_id", False)])
def test_only_raw_identifiers_need_the_key(tmp_path, key, needed):
    assert needs_key(table(tmp_path, header=f"{key},sdh,iph")) is needed
