"""Maps of a fine-tuned detector against the truth masks of phantom heads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.start import Start
from headct.adapt.supervise import SuperviseOptim
from headct.cli.app import app
from headct.model.architecture import EncoderConfig
from headct.model.bundle import load_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.phantom.plan import archive_sites
from headct.phantom.profile import load_preset
from headct.phantom.render import canonical_affine, draw_scan, render_scan
from headct.store.labels import read_labels
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

GRID = Preprocessing(shape_zyx=(32, 40, 32), spacing_mm_zyx=(5.0, 5.0, 5.0))
N_SCANS, N_TRAIN = 240, 200
ENCODER = EncoderConfig(
    width=64,
    depth=2,
    heads=2,
    mlp_ratio=2,
    patch_voxels_zyx=(4, 4, 4),
    spacing_mm_zyx=GRID.spacing_mm_zyx,
    n_tokens=300,
)


def write_heads(folder: Path) -> None:
    """Phantom heads in a store, every second with a large haematoma; masks by scan; labels."""
    preset = load_preset("canonical")
    site = archive_sites(preset)[0]
    lines = ["scan_id,split,iph"]
    (folder / "masks").mkdir()
    with StoreWriter(folder / "store", GRID, shard_scans=64) as writer:
        for i in range(N_SCANS):
            spec = draw_scan(preset, site, 0, i, findings={"iph": 1.0} if i % 2 else {})
            affine = canonical_affine(spec, GRID)
            made = render_scan(spec, GRID.shape_zyx, affine, as_ingested=True)
            ids = {f"{what}_id": f"{what}-{i}" for what in ("patient", "study", "series")}
            about = {"scan_id": f"c-{i}", "status": "accepted", "affine_zyx": affine}
            writer.append(made.hu, ids | about)
            if "iph" in made.masks:
                path = folder / "masks" / f"c-{i}.npz"
                np.savez_compressed(path, iph=made.masks["iph"], affine_zyx=affine)
            lines.append(f"c-{i},{'train' if i < N_TRAIN else 'test'},{i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))


@pytest.mark.slow
def test_maps_of_a_detector_point_at_the_haematomas_of_phantoms(tmp_path: Path) -> None:
    write_heads(tmp_path)
    torch.manual_seed(0)
    save_bundle(tmp_path / "bundle", ViT3D(ENCODER), GRID)
    store = open_store(tmp_path / "store")
    labels = read_labels(tmp_path / "labels.csv", store.manifest)
    start = Start("bundle", load_bundle(tmp_path / "bundle"))
    recipe = FinetuneConfig(
        steps=600,
        batch=8,
        precision="fp32",
        threads=1,
        optim=SuperviseOptim(lr=1e-3),
        head_lr_factor=10.0,
    )
    run_finetune(store, labels, start, tmp_path / "task", recipe)
    arguments = ["explain", str(tmp_path / "store"), "--task", str(tmp_path / "task"), "--n", "12"]
    arguments += ["--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "maps")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "maps" / "localisation.json").read_text())["summary"]
    assert {row["map"] for row in summary} == {"attention", "gradient"}
    for row in summary:
        assert row["n"] == 12
        assert row["hit"] > row["chance_hit"] + 0.3
        assert row["dice"] > 4 * row["chance_dice"]
    assert "iph" in (tmp_path / "maps" / "localisation.svg").read_text().lower()
