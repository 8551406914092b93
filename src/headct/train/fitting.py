"""Whether a run fits the memory of its GPUs, and which settings make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from headct.errors import TrainingError
from headct.model.architecture import ENCODERS, EncoderConfig
from headct.train.memory import GIB, MemoryEstimate, estimate_memory
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewMaker

HEADROOM = 1.05
"""The estimate is held against the free memory with this factor."""
SIZES = ("large", "base", "small", "demo")
"""Encoders from large to small; what makes their size is taken, not their grid."""


def require_memory(
    recipe: PretrainRecipe,
    maker: ViewMaker,
    available: int,
    world_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> MemoryEstimate:
    """Raise where the run would not fit, with the settings that would.

    Args:
        recipe: as for `estimate_memory`, as are `maker`, `world_size` and `dtype`.
        maker: of its views.
        available: free bytes of the device.
        world_size: ranks.
        dtype: of the matrix products.

    Raises:
        TrainingError: too little memory; the message says how much is needed.
    """
    estimate = estimate_memory(recipe, maker, world_size, dtype)
    if estimate.total * HEADROOM <= available:
        return estimate
    raise TrainingError(
        f"the recipe needs about {estimate.total / GIB:.1f} GiB on each GPU"
        f" ({estimate.state / GIB:.1f} for weights and moments, {estimate.activations / GIB:.1f}"
        f" for activations), and {available / GIB:.1f} GiB are free",
        remedy=_what_fits(recipe, maker, available, world_size, dtype),
        code="gpu-too-small",
    )


def out_of_memory(recipe: PretrainRecipe, step: int) -> TrainingError:
    """What to raise where memory ran out after all, with the settings that need less."""
    sets = ["--set compute.activation_checkpointing=true"]
    if recipe.batch >= 2 * recipe.accumulate * recipe.fewest_scans:
        sets.insert(0, f"--set accumulate={2 * recipe.accumulate}")
    return TrainingError(
        f"the GPU has no memory left after step {step}",
        remedy=", or ".join(sets),
        code="out-of-memory",
    )


def _what_fits(
    recipe: PretrainRecipe, maker: ViewMaker, available: int, world_size: int, dtype: torch.dtype
) -> str:
    """The first change of the recipe that fits, cheapest first, as --set.

    A smaller encoder comes last, on the grid of the store: its recipe would want another store.
    """
    for changed in _changes(recipe, world_size):
        needed = estimate_memory(changed, maker, world_size, dtype).total
        if needed * HEADROOM <= available:
            return f"{' '.join(_settings(recipe, changed))} needs about {needed / GIB:.1f} GiB"
    fewest = "one scan" if recipe.fewest_scans <= world_size else "two scans"
    return (
        f"not even {fewest} at a time and an encoder of the size of {SIZES[-1]} fit: take a GPU"
        " with more memory, or ingest on a coarser grid (headct ingest --grid demo)"
    )


def _changes(recipe: PretrainRecipe, world_size: int) -> Iterator[PretrainRecipe]:
    strategies = ("ddp", "fsdp") if world_size > 1 else (recipe.compute.strategy,)
    share = recipe.batch // world_size
    most = min(share, recipe.batch // recipe.fewest_scans)
    for encoder in (recipe.encoder, *_smaller(recipe.encoder)):
        for strategy in strategies:
            for recomputed in (False, True):
                compute = {"activation_checkpointing": recomputed, "strategy": strategy}
                for accumulate in range(recipe.accumulate, most + 1):
                    if share % accumulate == 0:
                        changes = {
                            "encoder": encoder,
                            "accumulate": accumulate,
                            "compute": recipe.compute.model_copy(update=compute),
                        }
                        yield recipe.model_copy(update=changes)


def _smaller(encoder: EncoderConfig) -> list[EncoderConfig]:
    """The sizes below, with the patches, windows and positions that the encoder has."""
    sizes = [ENCODERS[name] for name in SIZES]
    shapes = [{"width": s.width, "depth": s.depth, "heads": s.heads} for s in sizes]
    n_numbers = encoder.width**2 * encoder.depth
    return [
        encoder.model_copy(update=shape)
        for shape in shapes
        if shape["width"] ** 2 * shape["depth"] < n_numbers
    ]


def _settings(recipe: PretrainRecipe, changed: PretrainRecipe) -> list[str]:
    """What turns a recipe into the changed one, as --set."""
    keys = ("accumulate", "compute.activation_checkpointing", "compute.strategy")
    before, after = recipe.settings(), changed.settings()
    sets = [f"--set {key}={_toml(after[key])}" for key in keys if before[key] != after[key]]
    if changed.encoder == recipe.encoder:
        return sets
    return [f'--set "encoder={_as_a_preset(changed.encoder)}"', *sets]


def _as_a_preset(encoder: EncoderConfig) -> str:
    """All of an encoder, as the preset that is nearest and what differs from it."""
    wanted = encoder.model_dump(mode="json")
    differences = {}
    for name, preset in ENCODERS.items():
        there = preset.model_dump(mode="json")
        differences[name] = {k: v for k, v in wanted.items() if v != there[k]}
    sayable = [name for name, keys in differences.items() if None not in keys.values()]
    nearest = min(sayable, key=lambda name: len(differences[name]))
    return _toml({"preset": nearest} | differences[nearest])


def _toml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)
