"""fmct-dino and fmct-mae against DINO and MAE written out as they were published."""

from __future__ import annotations

import pytest
import torch

from headct.config import load_recipe
from headct.model.tokens import gather_patches
from headct.objective.joint import JointObjective
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewBatch
from headct.volume.window import WINDOWS

TINY = [
    "encoder={preset='fmct', width=24, depth=2, heads=2, patch_voxels_zyx=[4, 4, 4],"
    " n_tokens=8, position_grid_zyx=[2, 2, 2]}",
    "objective.cls.hidden=16",
    "objective.cls.out=8",
]
DINO = ["objective.cls.centring={n_prototypes=12, frozen_fraction=0}"]
MAE = ["objective.decoder={width=24, depth=1, heads=2}", "objective.cls={weight=0}"]


def objective(name: str, settings: list[str]) -> JointObjective:
    recipe = load_recipe(name, PretrainRecipe, [*TINY, *settings])
    torch.manual_seed(0)
    return JointObjective(recipe.objective, recipe.encoder)


def views(n_global: int, n_local: int, n_masked: int) -> ViewBatch:
    """Three scans, every view of 2 x 2 x 2 patches, all of them kept."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(3 * n_global, 8, generator=generator).argsort(1)[:, :n_masked]
    masked = torch.zeros(3 * n_global, 8, dtype=torch.bool).scatter_(1, hidden, True)
    return ViewBatch(
        globals_hu=40 + 40 * torch.randn(3, n_global, 8, 8, 8, generator=generator),
        locals_hu=40 + 40 * torch.randn(3, n_local, 8, 8, 8, generator=generator),
        keep=torch.arange(8).expand(3, n_global, -1),
        masked=masked.view(3, n_global, 8),
        n_masked=n_masked,
        flipped=torch.zeros(3, n_global, dtype=torch.bool),
        spacing_mm_zyx=(2.0, 2.0, 2.0),
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_fmct_mae_is_mae(normalised: bool) -> None:
    """He et al. 2022: squared error, mean over the values of a patch, then over masked patches."""
    settings = [*MAE, f"objective.mae.normalised={str(normalised).lower()}"]
    model, batch = objective("fmct-mae", settings).eval(), views(1, 0, n_masked=6)
    loss = model.losses(batch, 0.5)["loss"]
    assert model.decoder is not None
    total, n_masked = 0.0, 0
    for scan in range(3):
        hu, mask = batch.globals_hu[scan], batch.masked[scan, 0]
        seen = (~mask).nonzero()[:, 0]
        hidden = mask.nonzero()[:, 0]
        with torch.no_grad():
            tokens = model.student.forward_hu(hu, (2.0, 2.0, 2.0), seen[None])
            places = model.student.centres_mm(hidden[None], hu.shape[1:], (2.0, 2.0, 2.0))
            predicted = model.decoder.to_voxels(model.decoder(tokens, places)[0])[0]
        for row, patch in zip(predicted, hidden, strict=True):
            voxels = gather_patches(hu, (4, 4, 4), patch[None, None])[0, 0]
            target = torch.cat([window.apply(voxels) for window in WINDOWS])
            if normalised:
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
            total += float((row - target).square().mean())
            n_masked += 1
    assert n_masked == 18
    assert loss.item() == pytest.approx(total / n_masked, rel=1e-4)


def test_fmct_dino_is_dino() -> None:
    """Caron et al. 2021, algorithm 1 with local crops: two steps, the centre between them."""
    model, batch = objective("fmct-dino", DINO).train(), views(2, 2, n_masked=0)
    model.student.eval()
    assert model.teacher is not None
    assert model.distillation is not None
    centre = torch.zeros(12)
    for step in range(2):
        torch.manual_seed(step)
        loss = model.losses(batch, 0.15 * step)["loss"].detach()
        torch.manual_seed(step)
        crops = model._draw_windows(6), model._draw_windows(6)
        student, teacher = {}, {}
        with torch.no_grad():
            large, small = batch.globals_hu.flatten(0, 1), batch.locals_hu.flatten(0, 1)
            heads = model.distillation.student, model.distillation.teacher
            for view in range(2):
                rows = slice(view, None, 2)  # of each scan
                s = model.student.forward_hu(large, windows=crops[0]).cls[rows]
                t = model.teacher.forward_hu(large, windows=crops[0]).cls[rows]
                local = model.student.forward_hu(small, windows=crops[1]).cls[rows]
                student[view] = heads[0].logits(heads[0](s)) / 0.1
                student[2 + view] = heads[0].logits(heads[0](local)) / 0.1
                teacher[view] = heads[1].logits(heads[1](t))
        temperature = 0.04 + 0.03 * (0.15 * step) / 0.3
        total, n_terms = 0.0, 0
        for j, target in teacher.items():
            p = ((target - centre) / temperature).softmax(-1)
            for i, logits in student.items():
                if i != j:
                    total += float(-(p * logits.log_softmax(-1)).sum(-1).mean())
                    n_terms += 1
        assert n_terms == 6
        assert loss.item() == pytest.approx(total / n_terms, rel=1e-4)
        model.after_step(0.996)
        centre = 0.9 * centre + 0.1 * torch.cat(list(teacher.values())).mean(0)
