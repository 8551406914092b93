"""How hard each term of a recipe pulls at the encoder when a run begins.

    python benchmarks/term_gradients.py --recipe joint --batch 16      # CPU-seconds
    python benchmarks/term_gradients.py --recipe small --batch 6 --set objective.cls.weight=1

Prints the norm of the gradient of every weighted term, at its full weight, on all weights of the
student, alone and over that of L_pix. Where one is many times the other, the optimizer follows it
alone: AdamW and Muon both make steps of a size that does not depend on the gradient's.
"""

from __future__ import annotations

import argparse
import json

import torch
from views import heads

from headct.config import load_recipe
from headct.model.tokens import select_head_tokens
from headct.objective.config import JointConfig
from headct.objective.joint import JointObjective
from headct.train.cost import TERMS
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewBatch, ViewMaker
from headct.volume.preprocessing import PRESETS


def alone(config: JointConfig, term: str) -> JointConfig:
    """The same with the other terms off."""
    others = {name: getattr(config, name) for name in TERMS if name != term}
    off = {name: other.model_copy(update={"weight": 0.0}) for name, other in others.items()}
    return config.model_copy(update=off)


def views_of(recipe: PretrainRecipe) -> ViewBatch:
    grid = PRESETS[recipe.name if recipe.name in PRESETS else "demo"]
    patch, n_tokens = recipe.encoder.patch_voxels_zyx, recipe.encoder.n_tokens
    maker = ViewMaker(
        recipe.views, grid, patch, lambda hu: select_head_tokens(hu, n_tokens, patch), recipe.seed
    )
    places = [(0, position) for position in range(recipe.batch)]
    return maker.make(heads(recipe.batch, grid), places, step=0)


def gradient_norm(recipe: PretrainRecipe, term: str, views: ViewBatch) -> float:
    torch.manual_seed(recipe.seed)
    objective = JointObjective(alone(recipe.objective, term), recipe.encoder).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(views, 1.0, with_rank=False)["loss"]
    loss.backward()
    grads = [p.grad for p in objective.student.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="joint")
    parser.add_argument("--batch", type=int, default=16, help="scans, phantoms")
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = (f"batch={args.batch}", *args.set)
    recipe = load_recipe(args.recipe, PretrainRecipe, sets, builtin="headct.recipes")
    views = views_of(recipe)
    on = [term for term in TERMS if getattr(recipe.objective, term).weight > 0]
    norms = {term: gradient_norm(recipe, term, views) for term in on if term != "gram"}
    for term, norm in norms.items():
        row = {"term": term, "weight": getattr(recipe.objective, term).weight}
        row["gradient_norm"] = round(norm, 5)
        if "mae" in norms:
            row["over_mae"] = round(norm / norms["mae"], 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
