"""Scans of a store, read ahead."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from headct.errors import StoreError
from headct.store.ahead import READERS, read_batches
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

GRID = Preprocessing(shape_zyx=(4, 4, 4), spacing_mm_zyx=(3.3, 3.3, 3.3))
N = 23


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("ahead") / "store"
    with StoreWriter(path, GRID) as writer:
        for i in range(N):
            names = {f"{what}_id": f"{what[0]}-{i:016x}" for what in ("patient", "study", "series")}
            row = {"scan_id": f"c-{i}", "status": "accepted", "flags": [], **names}
            hu = np.full(GRID.shape_zyx, i, np.int16)
            writer.append(hu, row | {"affine_zyx": np.eye(4).ravel().tolist()})
    return open_store(path)


@pytest.mark.parametrize("rows", [None, [5, 3, 3, 22, 0, 7, 1], [], [4]])
@pytest.mark.parametrize("scans_at_once", [1, 2, 64])
def test_batches_come_in_the_order_that_was_asked_for(store, rows, scans_at_once):
    batches = list(read_batches(store, rows, scans_at_once))
    wanted = list(range(N) if rows is None else rows)
    assert [row for some, _ in batches for row in some] == wanted
    assert [int(hu[0, 0, 0]) for _, some in batches for hu in some] == wanted
    assert all(len(some) == len(hu) <= scans_at_once for some, hu in batches)


def test_a_row_that_is_not_there_is_an_error_after_those_before_it(store):
    batches = read_batches(store, [0, 1, N, 2], 1)
    assert [next(batches)[0], next(batches)[0]] == [[0], [1]]
    with pytest.raises(StoreError, match=f"no row {N}"):
        next(batches)


def test_who_stops_early_leaves_no_thread_behind(store):
    batches = read_batches(store, list(range(N)) * 20, 1)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-scans")]


def test_only_a_few_batches_are_read_before_they_are_wanted(store, monkeypatch):
    read = []
    monkeypatch.setattr(type(store), "read_hu", lambda _, rows: read.append(rows))
    batches = read_batches(store, list(range(N)), 1)
    next(batches)
    assert len(read) <= READERS + 1
    batches.close()
