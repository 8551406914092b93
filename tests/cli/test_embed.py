"""`headct embed`: which device, and what comes out."""

import re
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from headct.adapt.features import read_features
from headct.cli.app import app
from headct.errors import UsageError
from headct.model.architecture import ENCODERS
from headct.model.bundle import load_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS, Preprocessing

GRID = Preprocessing(shape_zyx=(16, 24, 16), spacing_mm_zyx=(3.3, 3.3, 3.3))
TINY = ENCODERS["demo"].model_copy(update={"width": 48, "depth": 2, "heads": 3, "n_tokens": 8})


@pytest.fixture
def arguments(tmp_path):
    torch.manual_seed(0)
    save_bundle(tmp_path / "bundle", ViT3D(TINY), GRID)
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", GRID) as writer:
        for i in range(3):
            names = {f"{what}_id": f"{what[0]}-{i:016x}" for what in ("patient", "study", "series")}
            row = {"scan_id": f"c-{i}", "status": "accepted", "flags": [], **names}
            hu = rng.integers(-1000, 200, GRID.shape_zyx).astype(np.int16)
            writer.append(hu, row | {"affine_zyx": np.eye(4).ravel().tolist()})
    folders = [str(tmp_path / "store"), "--bundle", str(tmp_path / "bundle")]
    return ["embed", *folders, "--out", str(tmp_path / "features.parquet")]


def test_a_store_becomes_cls_mean_and_max_of_every_scan(arguments, tmp_path):
    assert CliRunner().invoke(app, [*arguments, "--device", "cpu"]).exit_code == 0
    table = read_features(tmp_path / "features.parquet")
    expected = load_bundle(tmp_path / "bundle").embed(tmp_path / "store")
    assert table.bundle_hash == load_bundle(tmp_path / "bundle").hash
    for name in ("cls", "mean", "max"):
        np.testing.assert_allclose(table.vectors[name], getattr(expected, name), atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error(arguments):
    result = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
    assert isinstance(result.exception, UsageError)
    assert "no GPU" in result.exception.message


def test_what_files_were_refused_for_is_said(folder, tmp_path):
    save_bundle(tmp_path / "bundle", ViT3D(TINY), PRESETS["demo"])
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\0" * 200)
    how = ["--bundle", tmp_path / "bundle", "--key", tmp_path / "key", "--out", tmp_path / "f"]
    refused = CliRunner().invoke(app, ["embed", *map(str, [tmp_path / "in", *how])])
    assert "2 unreadable" in refused.exception.message
    shutil.copytree(folder, tmp_path / "in" / "head")
    answer = CliRunner().invoke(app, ["embed", *map(str, [tmp_path / "in", *how])])
    assert answer.exit_code == 1
    assert re.search(r"refused +unreadable +2 +The file is damaged", answer.stdout)
    assert "3 seen = 1 accepted, 0 flagged, 2 refused" in answer.stdout
    assert "items.jsonl" in answer.stdout


def test_tokens_say_where_they_are_and_replace_no_file(arguments, tmp_path):
    how = [*arguments[:-1], str(tmp_path / "tokens"), "--tokens", "--device", "cpu"]
    first, again = (CliRunner().invoke(app, how).stdout for _ in range(2))
    assert f"3 scans in {tmp_path / 'tokens'}\n" in first
    assert "was there already" in again
    (tmp_path / "letter").write_text("dear all")
    how[how.index(str(tmp_path / "tokens"))] = str(tmp_path / "letter")
    answer = CliRunner().invoke(app, how)
    assert isinstance(answer.exception, UsageError)
    assert "letter is a file, no folder of tokens" in answer.exception.message
