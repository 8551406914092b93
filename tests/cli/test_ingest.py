"""`headct ingest` as people call it: words, tables, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from headct.store.store import open_store


def headct(*arguments: object, key: Path) -> subprocess.CompletedProcess[str]:
    code = "from headct.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--key", str(key)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_exit_codes_and_words(folder: Path, tmp_path: Path) -> None:
    store, key = tmp_path / "store", tmp_path / "key"
    done = headct("ingest", folder, "--out", store, "--grid", "demo", "--jobs", 1, key=key)
    assert done.returncode == 0, done.stderr
    assert "1 seen" in done.stdout
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.dcm").write_bytes(b"\0" * 200)
    sources = (folder, tmp_path / "more")
    done = headct("ingest", *sources, "--out", store, "--grid", "demo", "--jobs", 1, key=key)
    assert done.returncode == 1, done.stderr
    assert "unreadable" in done.stdout
    done = headct("ingest", tmp_path / "none", "--out", store, "--grid", "demo", key=key)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "none" not in done.stderr


def test_grid_can_be_set(folder: Path, tmp_path: Path) -> None:
    grid = ("--grid", "demo", "--set", "shape_zyx=[24,32,24]", "--set", "spacing_mm_zyx=[7,7,7]")
    arguments = ("ingest", folder, "--out", tmp_path / "store", "--jobs", 1, *grid)
    done = headct(*arguments, key=tmp_path / "key")
    assert done.returncode == 0, done.stderr
    hu = open_store(tmp_path / "store").read_hu([0])
    assert hu.shape == (1, 24, 32, 24)
    assert np.median(hu[0, 14:18, 14:18, 10:14]) > 0
    done = headct("ingest", folder, "--out", tmp_path / "b", "--set", "shape=3", key=tmp_path / "k")
    assert done.returncode == 2
    assert "unknown key" in done.stderr
