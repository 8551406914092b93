"""The recipes of FM-CT, scaled down, go through the same loop to a bundle that can be used."""

import numpy as np
import pytest
import torch

from headct.config import load_recipe
from headct.model.bundle import load_bundle
from headct.objective.joint import JointObjective
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.train.feed import view_maker
from headct.train.panel import reconstruct
from headct.train.pretrain import pretrain
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import Stretch

from .tiny import GRID, make_store

SCALED = [
    "encoder={preset='fmct', width=24, depth=2, heads=2, patch_voxels_zyx=[4, 4, 4],"
    " spacing_mm_zyx=[8, 8, 8], n_tokens=64, position_grid_zyx=[4, 4, 4]}",
    "steps=4",
    "batch=4",
    "precision=fp32",
    "record={metrics_every=1, panel_every=2}",
]
OF = {
    "fmct-dino": ["objective.cls.hidden=16", "objective.cls.out=8"],
    "fmct-mae": ["objective.decoder={width=24, depth=1, heads=2}"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    cube = GRID.model_copy(update={"stretched": Stretch()})
    return make_store(tmp_path_factory.mktemp("cube") / "store", 8, cube)


@pytest.mark.parametrize("name", OF)
def test_a_scaled_recipe_of_fm_ct_gives_a_bundle(name, store, tmp_path):
    recipe = load_recipe(name, PretrainRecipe, [*SCALED, *OF[name]])
    outcome = pretrain(recipe, store, tmp_path / "run", threads=1)
    assert (outcome.status, outcome.seen_scans) == ("finished", 16)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    term = "cls_loss" if name == "fmct-dino" else "mae_loss"
    assert all(row["applied"] and row["loss"] == pytest.approx(row[term]) for row in rows)
    bundle = load_bundle(tmp_path / "run" / "bundle")
    assert bundle.provenance["weights"] == ("teacher" if name == "fmct-dino" else "student")
    assert bundle.embed(store).cls.shape == (8, 24)


@pytest.mark.parametrize("name", OF)
def test_every_view_is_the_whole_grid_with_every_token(name, store):
    recipe = load_recipe(name, PretrainRecipe, [*SCALED, *OF[name]])
    opened = open_store(store)
    hu = torch.from_numpy(opened.read_hu([0, 1, 2]))
    views = view_maker(recipe, opened).make(hu, [(0, 0), (0, 1), (0, 2)], step=0)
    n_global, n_local, n_masked = (2, 2, 0) if name == "fmct-dino" else (1, 0, 48)
    assert views.globals_hu.shape == (3, n_global, 16, 16, 16)
    assert views.locals_hu.shape == (3, n_local, 16, 16, 16)
    assert torch.equal(views.keep, torch.arange(64).expand(3, n_global, -1))
    assert views.n_masked == n_masked
    again = view_maker(recipe, opened).make(hu, [(0, 0), (0, 1), (0, 2)], step=0)
    assert torch.equal(views.globals_hu, again.globals_hu)


def test_a_picture_of_normalised_patches_is_put_back_on_their_level(store):
    settings = [*SCALED, *OF["fmct-mae"], "objective.mae.normalised=true"]
    recipe, opened = load_recipe("fmct-mae", PretrainRecipe, settings), open_store(store)
    objective = JointObjective(recipe.objective, recipe.encoder)
    for parameter in objective.decoder.to_voxels.parameters():
        torch.nn.init.zeros_(parameter)
    hu = torch.from_numpy(opened.read_hu([0]))
    views = view_maker(recipe, opened).make(hu, [(0, 0)], step=0)
    _, _, guessed = reconstruct(objective, views)
    windows = [window.apply(views.globals_hu[0, 0].numpy()) for window in recipe.encoder.windows]
    for patch in views.keep[0, 0][views.masked[0, 0]].tolist():
        z, y, x = (4 * int(n) for n in np.unravel_index(patch, (4, 4, 4)))
        box = (slice(z, z + 4), slice(y, y + 4), slice(x, x + 4))
        level = np.mean([window[box] for window in windows])
        np.testing.assert_allclose(guessed[0][box], level, atol=1e-5)
