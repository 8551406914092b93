"""A store survives kill, full disk, a second writer, and says when its voxels changed."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headct.store.writer as writer_module
from headct.errors import MismatchError, StoreError
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

FIRST_SHARD = "hu.zarr/c/0/0/0/0"
PREPROCESSING = Preprocessing(shape_zyx=(4, 6, 5), spacing_mm_zyx=(3.0, 2.0, 2.0))


def scan_hu(n: int) -> np.ndarray:
    rng = np.random.default_rng([7, n])
    return rng.integers(-1000, 2000, PREPROCESSING.shape_zyx).astype(np.int16)


def scan_row(n: int, **more: Any) -> dict[str, Any]:
    return {
        "scan_id": f"c-{n:016x}",
        "patient_id": f"p-{n // 2:016x}",
        "study_id": f"s-{n:016x}",
        "series_id": f"e-{n:016x}",
        "status": "accepted",
        "affine_zyx": np.diag([3.0, 2.0, 2.0, 1.0]),
        "kvp": 120.0,
        **more,
    }


def item(n: int) -> dict[str, Any]:
    return {"source": f"f-{n}", "series": None, "status": "accepted", "scan_id": f"c-{n:016x}"}


def write(path: Path, numbers: range, **options: Any) -> None:
    with StoreWriter(path, PREPROCESSING, **options) as writer:
        for n in numbers:
            writer.add([item(n)], [(scan_hu(n), scan_row(n))])


def test_a_path_may_lead_upwards(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path("../one"), tmp_path / "here" / ".." / "two"):
        write(path, range(2))
        np.testing.assert_array_equal(open_store(path).read_hu([1])[0], scan_hu(1))
        assert path.resolve().parent == tmp_path


def require_equal(path: Path, numbers: range) -> None:
    store = open_store(path)
    assert store.scan_ids == [f"c-{n:016x}" for n in numbers]
    assert store.manifest["row"].to_pylist() == list(range(len(numbers)))
    for row, n in enumerate(numbers):
        np.testing.assert_array_equal(store.read_hu([row])[0], scan_hu(n))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "s", range(7), shard_scans=3)
    require_equal(tmp_path / "s", range(7))
    store = open_store(tmp_path / "s")
    assert store.preprocessing == PREPROCESSING
    np.testing.assert_array_equal(
        store.read_hu([5, 0, 5]), np.stack([scan_hu(5), scan_hu(0), scan_hu(5)])
    )
    volume = store["c-0000000000000003"]
    np.testing.assert_array_equal(volume.affine_zyx, np.diag([3.0, 2.0, 2.0, 1.0]))
    assert len(list(read_jsonl(tmp_path / "s" / "items.jsonl"))) == 7


def test_plain_zarr_reads_it(tmp_path: Path) -> None:
    import zarr

    write(tmp_path / "s", range(5), shard_scans=3)
    array = zarr.open_array(tmp_path / "s" / "hu.zarr", mode="r")
    assert array.shape == (5, 4, 6, 5)
    assert array.chunks == (1, 4, 6, 5)
    assert array.shards == (3, 4, 6, 5)
    np.testing.assert_array_equal(array[4], scan_hu(4))


def test_appending_again_changes_nothing_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "s", range(4), shard_scans=3)
    before = (tmp_path / "s" / "manifest.parquet").read_bytes()
    with StoreWriter(tmp_path / "s", PREPROCESSING) as writer:
        assert not writer.append(scan_hu(2), scan_row(2))
    assert (tmp_path / "s" / "manifest.parquet").read_bytes() == before
    write(tmp_path / "s", range(4, 9))
    require_equal(tmp_path / "s", range(9))


def test_same_scan_with_other_voxels_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", range(2))
    with (
        StoreWriter(tmp_path / "s", PREPROCESSING) as writer,
        pytest.raises(StoreError, match="other voxels"),
    ):
        writer.append(scan_hu(5), scan_row(1))


def test_bad_rows_and_volumes_are_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", PREPROCESSING) as writer:
        with pytest.raises(StoreError, match="takes int16"):
            writer.append(np.zeros((4, 6, 6), np.int16), scan_row(0))
        with pytest.raises(StoreError, match="no columns"):
            writer.append(scan_hu(0), scan_row(0, patient_name="x"))
        with pytest.raises(StoreError, match="wrong type"):
            writer.append(scan_hu(0), scan_row(0, kvp="high"))
        assert len(writer) == 0


def test_second_writer_gets_an_error(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", PREPROCESSING):
        with pytest.raises(StoreError, match="another process") as caught:
            StoreWriter(tmp_path / "s", PREPROCESSING).__enter__()
        assert str(os.getpid()) in caught.value.message
    write(tmp_path / "s", range(1))


def test_other_preprocessing_or_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", range(2))
    other = PREPROCESSING.model_copy(update={"vertex_margin_mm": 9.0})
    with pytest.raises(MismatchError, match="preprocessing"):
        StoreWriter(tmp_path / "s", other).__enter__()
    info = tmp_path / "s" / "store.json"
    info.write_text(info.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(StoreError, match="format version 99"):
        open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="format version 99"):
        StoreWriter(tmp_path / "s", PREPROCESSING).__enter__()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a store"):
        open_store(tmp_path / "nothing")


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_bit_flip_names_the_scan(tmp_path: Path, where: float) -> None:
    write(tmp_path / "s", range(3), shard_scans=3)
    shard = tmp_path / "s" / FIRST_SHARD
    data = bytearray(shard.read_bytes())
    data[int(len(data) * where)] ^= 4
    shard.write_bytes(bytes(data))
    store = open_store(tmp_path / "s")
    with pytest.raises(StoreError, match="c-0") as caught:
        store.read_hu([0, 1, 2])
    assert caught.value.code == "damaged-scan"


def test_missing_shard_is_damage_not_air(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3), shard_scans=3)
    shard = tmp_path / "s" / FIRST_SHARD
    shard.unlink()
    with pytest.raises(StoreError, match="damaged or missing"):
        open_store(tmp_path / "s").read_hu([1])


def test_store_pickles_as_its_path(tmp_path: Path) -> None:
    write(tmp_path / "s", range(3))
    store = open_store(tmp_path / "s")
    store.read_hu([0])
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read_hu([1])[0], scan_hu(1))


@pytest.mark.parametrize("n_th", range(1, 9))
def test_full_disk_leaves_a_readable_store_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_th: int
) -> None:
    """Every n-th write fails with a torn file; then the disk has space again."""
    count = 0

    def failing(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == n_th:
                if original.__name__ == "append_jsonl":
                    with args[0].open("a") as handle:
                        handle.write('{"row": 3, "scan')
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_write_shards", failing(StoreWriter._write_shards))
        for name in ("append_jsonl", "write_manifest"):
            patch.setattr(writer_module, name, failing(getattr(writer_module, name)))
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "s", range(7), shard_scans=3)
    if (tmp_path / "s" / "store.json").exists():
        n_committed = len(open_store(tmp_path / "s"))
        require_equal(tmp_path / "s", range(n_committed))
    write(tmp_path / "s", range(7), shard_scans=3)
    require_equal(tmp_path / "s", range(7))
    items = [line["scan_id"] for line in read_jsonl(tmp_path / "s" / "items.jsonl")]
    assert sorted(set(items)) == [f"c-{n:016x}" for n in range(7)]


KILLED = """
import os, signal, sys
from pathlib import Path
import test_writer as t
import headct.store.writer as w
at, path = int(sys.argv[1]), Path(sys.argv[2])
count = 0
def counted(original):
    def call(*args, **options):
        global count
        count += 1
        if count == at: os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        count += 1
        if count == at: os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
w.StoreWriter._write_shards = counted(w.StoreWriter._write_shards)
for name in ("append_jsonl", "write_manifest", "recover"):
    setattr(w, name, counted(getattr(w, name)))
t.write(path, range(7), shard_scans=3)
"""


@pytest.mark.parametrize("moment", [2, 5, 8, 9, 12, 15])
def test_kill_then_resume_equals_uninterrupted(tmp_path: Path, moment: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(moment), str(tmp_path / "s")],
        env=environment,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    with StoreWriter(tmp_path / "s", PREPROCESSING, shard_scans=3) as writer:
        known = {line["scan_id"] for line in writer.items()}
        for n in range(7):
            if item(n)["scan_id"] in known:
                continue
            writer.add([item(n)], [(scan_hu(n), scan_row(n))])
    write(tmp_path / "whole", range(7), shard_scans=3)
    require_equal(tmp_path / "s", range(7))
    for name in ("manifest.parquet", "items.jsonl"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
