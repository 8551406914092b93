"""Real faults under a store: a full disk, a read-only one, files that are lost or damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from headct.cli.app import app
from headct.errors import StoreError
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(shape_zyx=(24, 32, 32), spacing_mm_zyx=(3.0, 2.0, 2.0))


def write(path: Path, n: int) -> None:
    with StoreWriter(path, PREPROCESSING, shard_scans=4) as writer:
        known = {line["scan_id"] for line in writer.items()}
        for i in range(n):
            scan_id = f"c-{i:016x}"
            if scan_id not in known:
                item = {"source": f"f-{i}", "status": "accepted", "scan_id": scan_id}
                writer.add([item], [(scan_hu(i), row(i))])


def row(i: int) -> dict[str, object]:
    names = {name: f"{name[0]}-{i:016x}" for name in ("patient_id", "study_id", "series_id")}
    return {"scan_id": f"c-{i:016x}", "status": "accepted", "affine_zyx": np.eye(4)} | names


def scan_hu(i: int) -> np.ndarray:
    noise = np.random.default_rng(i).integers(-1024, 3071, PREPROCESSING.shape_zyx)
    return noise.astype(np.int16)


def require_whole(path: Path, n: int) -> None:
    store = open_store(path)
    assert store.scan_ids == [f"c-{i:016x}" for i in range(n)]
    for i in range(n):
        np.testing.assert_array_equal(store.read_hu([i])[0], scan_hu(i))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises((OSError, StoreError)) as caught:
        write(small_disk / "store", 40)
    assert "space" in str(caught.value)
    n = len(open_store(small_disk / "store"))
    assert 0 < n < 40
    require_whole(small_disk / "store", n)
    shutil.copytree(small_disk / "store", tmp_path / "store")  # the disk has grown
    write(tmp_path / "store", 40)
    require_whole(tmp_path / "store", 40)
    items = [line["scan_id"] for line in read_jsonl(tmp_path / "store" / "items.jsonl")]
    assert items == open_store(tmp_path / "store").scan_ids


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_lost_manifest_is_said_and_rebuilt(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "store", 6)
    manifest = tmp_path / "store" / "manifest.parquet"
    before = manifest.read_bytes()
    if damage == "missing":
        manifest.unlink()
    else:
        manifest.write_bytes(before[:-40])
    with pytest.raises(StoreError, match="manifest") as caught:
        open_store(tmp_path / "store")
    assert "headct store rebuild" in caught.value.remedy
    with pytest.raises(StoreError, match="manifest"):
        write(tmp_path / "store", 7)
    done = CliRunner().invoke(app, ["store", "rebuild", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert "6 scans" in done.output
    assert manifest.read_bytes() == before
    require_whole(tmp_path / "store", 6)


def test_with_the_copy_gone_too_it_says_what_is_left_to_do(tmp_path: Path) -> None:
    write(tmp_path / "store", 2)
    for path in (tmp_path / "store").glob("manifest*.parquet"):
        path.unlink()
    done = CliRunner().invoke(app, ["store", "rebuild", str(tmp_path / "store")])
    assert done.exit_code != 0
    assert isinstance(done.exception, StoreError)
    assert "ingest the sources again" in done.exception.remedy


def test_a_store_without_its_array_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    write(tmp_path / "store", 2)
    shutil.rmtree(tmp_path / "store" / "hu.zarr")
    with pytest.raises(StoreError, match=r"hu\.zarr cannot be opened"):
        write(tmp_path / "store", 3)
    with pytest.raises(StoreError, match=r"hu\.zarr cannot be opened"):
        open_store(tmp_path / "store").read_hu([0])


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A store on a disk that is mounted read-only."""
    write(tmp_path / "store", 3)
    place = tmp_path / "mounted"
    place.mkdir()
    bind = ["mount", "--bind", str(tmp_path / "store"), str(place)]
    if os.geteuid() != 0 or subprocess.run(bind, capture_output=True).returncode != 0:
        pytest.skip("mounting read-only needs root")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_disk_can_be_read_and_is_said(read_only: Path) -> None:
    require_whole(read_only, 3)
    with pytest.raises((OSError, StoreError), match=r"[Rr]ead-only"):
        write(read_only, 4)
    require_whole(read_only, 3)
