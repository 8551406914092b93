from __future__ import annotations

import csv
import shutil

import pytest
from tests.labels.sets import (
    KEY,
    fault,
    require_no_identifiers,
    run,
    store_of,
    variant,
    write_csv,
    write_slices,
)

from headct.labels.cq500 import READERS, read_cq500, read_majority
from headct.store.labels import read_labels, refused_ids

FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right")
FINDINGS += ("ChronicBleed", "Fracture", "CalvarialFracture", "OtherFracture", "MassEffect")
FINDINGS += ("MidlineShift",)
HEADER = ",".join(["name", "Category", *(f"{r}:{f}" for r in READERS for f in FINDINGS)])
SERIES = {0: ("CT Plain", "CT PLAIN THIN"), 7: ("CT 5mm", "CT Thin Plain", "CT POST CONTRAST")}
SERIES |= {12: ("CT Plain",)}


def reads(number, *present):
    """A row; each finding present for the readers that its dots count: 'SDH..' for two."""
    votes = {name.rstrip("."): name.count(".") for name in present}
    cells = [str(int(votes.get(f, 0) > n)) for n in range(3) for f in FINDINGS]
    return ",".join([f"CQ500-CT-{number}", "B1", *cells])


ROWS = [
    reads(0, "ICH...", "SDH..", "IPH.", "BleedLocation-Left...", "MassEffect..", "MidlineShift."),
    reads(7),
    reads(12, "ICH..", "IVH...", "Fracture.."),
    reads(30, "ICH..."),
]


@pytest.fixture(scope="module")
def cq500(tmp_path_factory, head):
    """`CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm`, and reads.csv."""
    root = tmp_path_factory.mktemp("cq500")
    for number, names in SERIES.items():
        name = f"CQ500CT{number}"
        for n, series_name in enumerate(names):
            series = variant(head, f"CQ500-CT-{number}", number, n)
            folder = root / f"{name} {name}" / "Unknown Study" / series_name
            write_slices(folder, series, "CT{:06d}.dcm".format)
    write_csv(root / "reads.csv", HEADER, ROWS)
    return root


def test_from_the_published_tree_to_labels_of_all_series_of_a_scan(cq500, key_file, tmp_path):
    store = store_of(cq500, tmp_path / "store", key_file)
    out = tmp_path / "labels.csv"
    answer = run("cq500", cq500 / "reads.csv", "--dicom", cq500, "--out", out, "--key", key_file)
    assert answer.exit_code == 0
    assert "4 rows read, 3 studies labelled" in answer.output
    assert "6 series of labelled scans" in answer.output
    assert "1 scans with reads have no DICOM file" in answer.output
    known = read_labels(
        out,
        store.manifest,
        findings=["ich", "sdh", "ivh", "bleed_left", "mass_effect", "fracture"],
        refused=refused_ids(store.path / "items.jsonl"),
    )
    assert len(known) == 6 == len(store), "thin, thick and contrast share the label of their scan"
    for patient in set(known.patient_id):
        mine = known.take((known.patient_id == patient).nonzero()[0])
        assert len(set(mine.split)) == 1
        assert (mine.values == mine.values[0]).all()
    assert sorted(map(tuple, known.values.tolist())) == [
        *[(0, 0, 0, 0, 0, 0)] * 3,
        (1, 0, 1, 0, 0, 1),
        *[(1, 1, 0, 1, 1, 0)] * 2,
    ]
    require_no_identifiers(answer.output, out.read_text())


def test_one_of_three_readers_is_no_majority_and_a_missing_read_may_leave_none(tmp_path):
    row = reads(3, "ICH.", "SDH..", "IPH...").split(",")
    places = {name: n for n, name in enumerate(HEADER.split(","))}
    row[places["R1:ICH"]] = row[places["R3:SDH"]] = row[places["R2:EDH"]] = ""
    row[places["R2:SAH"]], row[places["R3:SAH"]] = "", "1"
    labels = read_majority(write_csv(tmp_path / "reads.csv", HEADER, [",".join(row)]))[3]
    assert (labels["ich"], labels["sdh"], labels["iph"], labels["edh"]) == (0, 1, 1, 0)
    assert labels["sah"] is None


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([*ROWS, ROWS[1]], r"1 row about a scan that an earlier row is about \(line 6\)"),
        ([ROWS[0].replace("CQ500-CT-0", "Secretname")], r"1 row that names no CQ500 scan \(line 2"),
        ([ROWS[0][:-1] + "2"], r"1 row with a read other than 0, 1 and nothing \(line 2\)"),
        ([ROWS[0] + ",0"], r"more or fewer fields than the header \(line 2\)"),
    ],
)
def test_faults_of_rows(tmp_path, rows, match):
    table = write_csv(tmp_path / "reads.csv", HEADER, rows)
    require_no_identifiers(fault(match, lambda: read_majority(table)).replace("CQ500-CT", ""))


def test_faults_of_columns(tmp_path):
    table = write_csv(tmp_path / "a.csv", HEADER.replace("R2:SDH", "R2:Stone"), ROWS)
    fault("lacks the column R2:SDH", lambda: read_majority(table))
    table = write_csv(tmp_path / "b.csv", f"{HEADER},R4:SDH", [f"{row},0" for row in ROWS])
    fault("unknown column R4:SDH", lambda: read_majority(table))
    names = ",".join(f"R{n}:Xyzzy" for n in (1, 2, 3))
    table = write_csv(tmp_path / "c.csv", f"{HEADER},{names}", [f"{row},0,0,0" for row in ROWS])
    fault("'Xyzzy' is not in the vocabulary", lambda: read_majority(table))


def test_a_scan_in_the_folder_of_another(cq500, head, tmp_path):
    folder = tmp_path / "CQ500CT7 CQ500CT7" / "Unknown Study" / "CT Plain"
    write_slices(folder, variant(head, "CQ500-CT-12", 12, 9), "CT{:06d}.dcm".format)
    fault(
        "1 series lie in the folder of another",
        lambda: read_cq500(cq500 / "reads.csv", [tmp_path], KEY),
    )


def test_folders_name_scans_whose_headers_do_not(cq500, head, tmp_path):
    for number in (7, 99):
        folder = tmp_path / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT Plain"
        write_slices(folder, variant(head, "", number, 1), "CT{:06d}.dcm".format)
    found = read_cq500(cq500 / "reads.csv", [tmp_path], KEY)
    assert len(found.rows) == 1
    assert "1 series of scans without a read: left out" in found.notes


def test_the_archives_that_the_set_is_handed_out_in(cq500, tmp_path):
    names = [path for path in sorted(cq500.iterdir()) if path.is_dir()]
    for path in names:
        archive = tmp_path / "zips" / path.name.split()[0]
        shutil.make_archive(str(archive), "zip", cq500, path.name)
    work = tmp_path / "work"
    packed = read_cq500(cq500 / "reads.csv", [tmp_path / "zips"], KEY, work)
    assert packed == read_cq500(cq500 / "reads.csv", [cq500], KEY)
    assert not list(work.iterdir())


def test_no_dicom(cq500, tmp_path):
    fault("no DICOM image among 0 files", lambda: read_cq500(cq500 / "reads.csv", [tmp_path], KEY))


def test_the_real_table_of_reads(real_data):
    table = real_data / "labels" / "cq500_reads.csv"
    if not table.is_file():
        pytest.skip("no table of CQ500's reads among the real data")
    labels = read_majority(table)
    assert len(labels) == 491
    with table.open() as handle:
        rows = list(csv.DictReader(handle))
    for row in rows[:50]:
        number = int(row["name"].rpartition("-")[2])
        votes = sum(int(row[f"{reader}:SDH"]) for reader in READERS)
        assert labels[number]["sdh"] == int(votes >= 2)
    # Lancet 2018, table 2, has 205 bleeds, 134 IPH, 53 SDH and 13 EDH by majority
    counts = [sum(bool(one[f]) for one in labels.values()) for f in ("ich", "iph", "sdh", "edh")]
    assert counts == [205, 134, 53, 13]
