from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headct.adapt.features import read_features, write_features
from headct.adapt.floors import HISTOGRAM_EDGES_HU, blocks, histogram
from headct.errors import MismatchError, UsageError


def test_a_table_comes_back_as_it_was_written(tmp_path, table):
    write_features(tmp_path / "f.parquet", table)
    again = read_features(tmp_path / "f.parquet")
    assert (again.scan_id == table.scan_id).all()
    assert (again.source, again.bundle_hash) == (table.source, table.bundle_hash)
    assert again.preprocessing_hash == table.preprocessing_hash
    assert list(again.vectors) == list(table.vectors)
    np.testing.assert_array_equal(again.vectors["cls"], table.vectors["cls"])
    np.testing.assert_allclose(again.vectors["region"], table.vectors["region"], atol=4e-3)


def test_rows_come_in_the_order_asked_for(table):
    taken = table.of(["c-7", "c-2"])
    np.testing.assert_array_equal(taken.vectors["mean"], table.vectors["mean"][[7, 2]])
    with pytest.raises(MismatchError, match="lacks 1 of 2"):
        table.of(["c-1", "c-none"])


def test_a_table_of_another_encoder_is_taken(tmp_path):
    foreign = {"scan_id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, 4.0]]}
    pq.write_table(pa.table(foreign), tmp_path / "f.parquet")
    table = read_features(tmp_path / "f.parquet")
    assert table.source == "external"
    np.testing.assert_array_equal(table.vectors["embedding"], [[1, 2], [3, 4]])
    np.savez(tmp_path / "f.npz", scan_id=["a", "b"], embedding=[[1.0, 2.0], [3.0, 4.0]])
    table = read_features(tmp_path / "f.npz")
    assert (table.source, list(table.scan_id)) == ("external", ["a", "b"])
    np.testing.assert_array_equal(table.vectors["embedding"], [[1, 2], [3, 4]])


def test_an_npz_that_holds_objects_or_unequal_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "o.npz", scan_id=np.array(["a", "b"], object), v=[[1.0], [2.0]])
    np.savez(tmp_path / "u.npz", scan_id=["a", "b"], v=[[1.0], [2.0], [3.0]])
    for name in ("o.npz", "u.npz"):
        with pytest.raises(UsageError, match="not a feature table"):
            read_features(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"scan_id": ["a", "b"]}, "no vectors"),
        ({"scan": ["a", "b"], "v": [[1.0], [2.0]]}, "no column scan_id"),
        ({"scan_id": ["a", "a"], "v": [[1.0], [2.0]]}, "twice"),
        ({"scan_id": ["a", "b"], "v": [[1.0], [2.0, 3.0]]}, "unequal length"),
        ({"scan_id": ["a", "b"], "v": [[1.0], [float("nan")]]}, "1 rows of v hold NaN"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, columns, match):
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(UsageError, match=match):
        read_features(tmp_path / "f.parquet")


def test_mixed_hashes_and_no_table_at_all(tmp_path):
    columns = {"scan_id": ["a", "b"], "v": [[1.0], [2.0]], "bundle_hash": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(MismatchError, match="2 values of bundle_hash"):
        read_features(tmp_path / "f.parquet")
    (tmp_path / "g.parquet").write_text("no")
    for name in ("g.parquet", "absent.parquet"):
        with pytest.raises(UsageError, match="not a feature table"):
            read_features(tmp_path / name)


def test_the_histogram_is_numpys_own_over_head_voxels():
    hu = np.random.default_rng(0).integers(-1200, 3200, (2, 8, 9, 7)).astype(np.int16)
    hu[0, :4] = 45
    vectors = histogram(hu)["histogram"]
    for scan, vector in zip(hu, vectors, strict=True):
        counts, _ = np.histogram(scan[scan < 3072], HISTOGRAM_EDGES_HU)
        clipped = (scan > 3071).sum()
        counts[-1] += clipped
        np.testing.assert_allclose(vector**2, counts / counts.sum(), atol=1e-6)


def test_a_histogram_of_air_is_zero_not_nan():
    assert (histogram(np.full((1, 4, 4, 4), -1000, np.int16))["histogram"] == 0).all()


def test_blocks_are_means_of_windowed_voxels():
    hu = np.full((1, 9, 8, 8), -1000, np.int16)  # one slice more than whole blocks
    hu[0, :4, :4, 4:] = 40
    vector = blocks(hu, (6.6, 6.6, 6.6))["blocks"][0]
    brain, blood = vector.reshape(2, 2, 2, 2)
    assert brain[0, 0, 1] == 0.0
    assert brain[1, 0, 1] == -1.0
    assert blood[0, 0, 1] == pytest.approx(-0.4)
