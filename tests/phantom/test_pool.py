"""The pool is a pure function of the preset, however often it stops.

That workers do not change it is tested with the whole archive, in test_archive.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headct.phantom.plan import POOL_PATIENTS_FROM, plan_studies
from headct.phantom.pool import pool_scan, write_pool
from headct.phantom.profile import PhantomPreset
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS

PRESET = PhantomPreset(seed=3, n_train=3, n_tune=0, n_test=0, n_external=3, n_pool=11)


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "pool"
    assert write_pool(PRESET, folder, n_workers=1) == 11
    return folder


def test_rows_hold_the_scans_in_order(pool: Path) -> None:
    store = open_store(pool)
    hu, row = pool_scan(PRESET, 7)
    assert store.scan_ids[7] == row["scan_id"]
    np.testing.assert_array_equal(store.read_hu([7])[0], hu)
    assert store.preprocessing.hash == PRESETS["demo"].hash


def test_a_pool_that_stopped_half_way_ends_the_same(pool: Path, tmp_path: Path) -> None:
    write_pool(PRESET.model_copy(update={"n_pool": 5}), tmp_path / "pool", n_workers=1)
    assert write_pool(PRESET, tmp_path / "pool", n_workers=1) == 11
    assert tree(tmp_path / "pool") == tree(pool)


def test_other_seeds_give_other_people() -> None:
    other = pool_scan(PRESET.model_copy(update={"seed": 4}), 7)
    assert (other[0] != pool_scan(PRESET, 7)[0]).mean() > 0.1
    assert other[1]["scan_id"] != pool_scan(PRESET, 7)[1]["scan_id"]


def test_nobody_of_the_pool_is_in_the_archive(pool: Path) -> None:
    numbers = {study.patient.number for study in plan_studies(PRESET)}
    assert not numbers & set(range(POOL_PATIENTS_FROM, POOL_PATIENTS_FROM + PRESET.n_pool))
    assert len(set(open_store(pool).manifest["patient_id"].to_pylist())) == 11
