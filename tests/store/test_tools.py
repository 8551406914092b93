"""Verify, stats, show and export through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from headct.cli import store as store_cli
from headct.errors import StoreError, UsageError
from headct.store.show import radiological
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing
from headct.volume.window import BRAIN

PREPROCESSING = Preprocessing(shape_zyx=(8, 12, 10), spacing_mm_zyx=(5.0, 4.0, 3.0))
AFFINE = np.array([[5.0, 0, 0, -20], [0, 4, 0, 30], [0, 0, 3, -7], [0, 0, 0, 1]])
N_SCANS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", PREPROCESSING) as writer:
        for n in range(N_SCANS):
            names = {f"{kind}_id": f"{kind[0]}-{n}" for kind in ("scan", "patient", "study")}
            row = names | {"series_id": f"e-{n}", "status": "accepted", "affine_zyx": AFFINE}
            item = {"source": f"e-{n}", "status": "accepted", "reason": None, "scan_id": f"s-{n}"}
            hu = rng.integers(-1000, 1000, PREPROCESSING.shape_zyx).astype(np.int16)
            writer.add([item], [(hu, row)])
    return tmp_path / "s"


def call(*arguments: Any) -> Any:
    app = typer.Typer()
    store_cli.register(app)
    return CliRunner().invoke(app, ["store", *map(str, arguments)])


def test_verify_passes_and_names_the_damaged(folder: Path) -> None:
    assert call("verify", folder).exit_code == 0
    shard = folder / "hu.zarr/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    result = call("verify", folder)
    assert result.exit_code == 1
    assert "damaged" in result.output


def test_verify_finds_an_item_without_its_scan(folder: Path) -> None:
    with (folder / "items.jsonl").open("a") as handle:
        handle.write('{"source": "x", "status": "accepted", "reason": null, "scan_id": "s-9"}\n')
    result = call("verify", folder)
    assert result.exit_code == 1
    assert "s-9" in result.output


def test_stats_counts(folder: Path) -> None:
    lines = dict(line.rsplit(maxsplit=1) for line in call("stats", folder).output.splitlines())
    assert lines["scans"] == lines["accepted"] == lines["seen"] == str(N_SCANS)


def test_export_keeps_voxels_and_affine(folder: Path, tmp_path: Path) -> None:
    assert call("export", folder, "--out", tmp_path / "nii", "--scan", "s-1").exit_code == 0
    (path,) = (tmp_path / "nii").iterdir()
    image = nib.load(path)
    assert path.name == "s-1.nii.gz"
    volume = open_store(folder)["s-1"]
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, volume.hu)
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [-4, 38, -5, 1])


def test_show_writes_a_sheet(folder: Path, tmp_path: Path) -> None:
    assert call("show", folder, "--out", tmp_path / "sheet.png").exit_code == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 2 * 4 * 10
        assert np.asarray(sheet).std() > 10


def test_slices_are_shown_as_radiologists_look() -> None:
    hu = np.zeros((4, 6), np.int16)
    hu[3, 5] = 80
    assert radiological(hu, BRAIN)[0, 0] == 255, "front right of the patient is top left"


def test_wrong_names_are_said(folder: Path, tmp_path: Path) -> None:
    assert isinstance(call("show", folder, "--window", "liver").exception, UsageError)
    missing = call("export", folder, "--out", tmp_path / "n", "--scan", "s-77")
    assert isinstance(missing.exception, StoreError)
    assert isinstance(call("verify", tmp_path).exception, StoreError)
