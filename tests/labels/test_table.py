"""The table that is written: splits, doubled rows, what is in the way; and rows that are read."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.labels.sets import fault, write_csv

from headct.errors import LabelError, UsageError
from headct.labels.lines import read_header, read_lines
from headct.labels.table import (
    Labelled,
    Row,
    Splits,
    once_each,
    read_splits,
    with_splits,
    write_table,
)


def rows_of(n, **changes):
    return [Row(f"c-{i}", f"p-{i // 2}", {"ich": i % 2}, **changes) for i in range(n)]


def test_splits_follow_the_patient_and_the_seed_alone():
    splits = Splits((60, 15, 25), seed=3)
    names = [f"p-{i:016x}" for i in range(4000)]
    first = [splits.of(name) for name in names]
    assert first == [splits.of(name) for name in names]
    assert first != [Splits((60, 15, 25), seed=4).of(name) for name in names]
    shares = {name: n / 40 for name, n in Counter(first).items()}
    assert abs(shares["train"] - 60) < 3
    assert abs(shares["tune"] - 15) < 3
    assert abs(shares["test"] - 25) < 3
    assert {Splits((0, 0, 100)).of(name) for name in names} == {"test"}
    assert {Splits((100, 0, 0)).of(name) for name in names} == {"train"}


def test_more_patients_move_nobody():
    few, many = Labelled("scan_id", rows_of(10), 0), Labelled("scan_id", rows_of(90), 0)
    splits = read_splits("50,25,25", seed=1)
    by_name = {row.name: row.split for row in with_splits(many, splits, "a")}
    assert all(by_name[row.name] == row.split for row in with_splits(few, splits, "a"))


def test_no_patient_is_in_two_splits():
    drawn = with_splits(Labelled("scan_id", rows_of(200), 0), read_splits("60,15,25"), "a")
    pairs = {(row.patient_id, row.split) for row in drawn}
    assert len(pairs) == 100
    given = [Row(f"c-{i}", "p-1", {}, split=name) for i, name in enumerate(("train", "test"))]
    fault(
        "1 patient in more than one split",
        lambda: with_splits(Labelled("scan_id", given, 0), None, ""),
    )
    bare = Labelled("scan_id", rows_of(3), 0)
    fault("3 rows have no split", lambda: with_splits(bare, None, ""))
    fault("no scan of the label table", lambda: with_splits(Labelled("scan_id", [], 0), None, ""))


@pytest.mark.parametrize("text", ["60,15", "60,15,30", "a,b,c", "-10,10,100", "outside", ""])
def test_splits_that_are_none(text):
    with pytest.raises(UsageError, match="--split wants"):
        read_splits(text)


def test_a_scan_that_comes_twice():
    once, notes = once_each([*rows_of(3), *rows_of(2)])
    assert [row.name for row in once] == ["c-0", "c-1", "c-2"]
    assert notes == ["2 scans come twice with the same labels: once each"]
    fault(
        "different labels",
        lambda: once_each([Row("c", "p", {"ich": 1}), Row("c", "p", {"ich": 0})]),
    )
    fault("different labels or patients", lambda: once_each([Row("c", "p", {}), Row("c", "q", {})]))


def test_csv_and_parquet_hold_the_same_and_are_replaced_but_nothing_else_is(tmp_path):
    rows = [*rows_of(3, split="train"), Row("c-9", "p-9", {"ich": None, "sdh": 1}, split="test")]
    for name in ("labels.csv", "labels.parquet"):
        write_table(tmp_path / name, "scan_id", rows)
        write_table(tmp_path / name, "scan_id", rows)
    text = (tmp_path / "labels.csv").read_text().splitlines()
    assert text[0] == "scan_id,patient_id,site,split,ich,sdh"
    assert text[-1] == "c-9,p-9,,test,,1"
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.column_names == text[0].split(",")
    assert table["ich"].to_pylist() == [0, 1, 0, None]
    mine = write_csv(tmp_path / "mine.csv", "study_uid,sdh", ["1,1"])
    with pytest.raises(UsageError, match="no table that `headct labels` wrote"):
        write_table(mine, "scan_id", rows)
    assert mine.read_text() == "study_uid,sdh\n1,1\n"
    with pytest.raises(UsageError, match="a folder"):
        write_table(tmp_path, "scan_id", rows)


def read_all(path, columns=("a", "b"), **more):
    return list(read_lines(path, "the table", columns, **more))


def test_lines_keep_their_number_in_the_file_whatever_lies_between(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffb;a\r\n1; x \r\n\r\n"two\nlines";y\r\n;\r\n3;z\r\n', encoding="utf-8")
    assert read_all(path) == [(2, ["x", "1"]), (5, ["y", "two\nlines"]), (7, ["z", "3"])]
    pq.write_table(pa.table({"b": [1, None], "a": ["x", "y"]}), tmp_path / "t.parquet")
    assert read_all(tmp_path / "t.parquet") == [(2, ["x", "1"]), (3, ["y", ""])]


def test_tables_that_cannot_be_read(tmp_path):
    path = tmp_path / "t.csv"
    fault("not there", lambda: read_all(path))
    for text, match in [
        ("", "no header"),
        ("a,a\n1,2\n", "two of one name"),
        ("a,b\n", "no rows"),
        ("a,c\n1,2\n", "lacks the column b"),
        ("a,b\n1,2,3\n1,2\n1\n", r"2 rows with more or fewer fields.*\(line 2, 4\)"),
    ]:
        path.write_text(text)
        fault(match, lambda: read_all(path))
    path.write_text("a,b,c\n1,2,3\n")
    assert read_all(path) == [(2, ["1", "2"])]
    fault("unknown column c", lambda: read_all(path, only=True))
    path.write_bytes(b"a,b\n\xff\xfe,1\n")
    fault("UTF-8", lambda: read_all(path))
    (tmp_path / "t.parquet").write_bytes(b"no such thing")
    with pytest.raises(LabelError, match="Parquet"):
        read_header(tmp_path / "t.parquet", "the table")
