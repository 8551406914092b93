"""How much device memory a run needs, before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from headct.model.architecture import EncoderConfig
from headct.objective.config import JointConfig
from headct.objective.joint import JointObjective
from headct.train.cost import TERMS, StepShape, largest_shape
from headct.train.optim import OptimConfig, make_optimizer
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewMaker

GIB = 2**30
CONTEXT_BYTES = GIB
"""Of CUDA itself, its libraries' workspaces and what the allocator cannot use."""
VIEW_COPIES = 5
"""Copies of the large views while they are augmented."""
BATCHES_ALIVE = 2
"""Views of the step, and those that are made meanwhile."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what they are for.

    Attributes:
        state: weights, gradients and moments.
        activations: what the student's forward pass keeps for the backward pass.
        passing: what is alive for a moment besides: a block of the teacher, prototypes.
        views: volumes and views.
        context: of the device.
    """

    state: int
    activations: int
    passing: int
    views: int
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """All together."""
        return self.state + self.activations + self.passing + self.views + self.context


def estimate_memory(
    recipe: PretrainRecipe,
    maker: ViewMaker,
    world_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> MemoryEstimate:
    """Device memory at the costliest step of a recipe.

    Args:
        recipe: with its batch, micro-batches, strategy and activation checkpointing.
        maker: of its views on the grid of the store.
        world_size: ranks.
        dtype: of the matrix products.
    """
    n_scans = max(1, recipe.batch // (world_size * recipe.accumulate))
    terms = {name for name in TERMS if getattr(recipe.objective, name).weight > 0}
    shape = largest_shape(maker, recipe.encoder, n_scans, terms)
    return MemoryEstimate(
        _state(recipe, world_size, dtype),
        _activations(recipe, shape, dtype),
        _passing(recipe, shape, world_size, dtype),
        _views(maker, shape),
    )


@dataclass(frozen=True)
class _Counts:
    """Numbers of an objective: all, trained, in buffers, moved by Muon, in its largest shard."""

    n_all: int
    n_trained: int
    n_buffers: int
    n_muon: int
    largest: int


@lru_cache
def _counts(objective: JointConfig, encoder: EncoderConfig, optim: OptimConfig) -> _Counts:
    with torch.device("meta"):
        made = JointObjective(objective, encoder)
    groups = make_optimizer(made, optim).param_groups
    heads = [] if made.distillation is None else [made.distillation]
    parts = (made.student.blocks[0], *heads)
    return _Counts(
        sum(p.numel() for p in made.parameters()),
        sum(p.numel() for p in made.parameters() if p.requires_grad),
        sum(b.numel() for b in made.buffers()),
        sum(p.numel() for group in groups if group.get("muon") for p in group["params"]),
        max(sum(p.numel() for p in part.parameters()) for part in parts),
    )


def _state(recipe: PretrainRecipe, world_size: int, dtype: torch.dtype) -> int:
    """Weights, gradients and the optimizer's moments in float32; copies for the products."""
    n = _counts(recipe.objective, recipe.encoder, recipe.optim)
    sharded = 4 * n.n_all + 12 * n.n_trained - 4 * n.n_muon  # Muon has one moment, AdamW two
    copies = dtype.itemsize * n.n_all if dtype.itemsize < 4 else 0  # autocast's, for one pass
    if world_size == 1:
        return sharded + copies + 4 * n.n_buffers
    if recipe.compute.strategy == "fsdp":
        return sharded // world_size + copies + 3 * 4 * n.largest + 4 * n.n_buffers
    return sharded + copies + 4 * n.n_trained + 4 * n.n_buffers  # and DDP's buckets of gradients


def _activations(recipe: PretrainRecipe, shape: StepShape, dtype: torch.dtype) -> int:
    encoder, objective = recipe.encoder, recipe.objective
    recomputed = recipe.compute.activation_checkpointing
    prefix = 1 + encoder.n_registers
    n_large = shape.n_scans * shape.n_global
    seen = n_large * (shape.n_visible + prefix)
    total = _trunk(encoder, seen, recomputed, dtype)
    if shape.terms & {"mae", "lat"}:
        n_asked = n_large * shape.n_asked(objective)
        sizes = objective.decoder.width, objective.decoder.depth, encoder.mlp_ratio
        total += _blocks(seen + n_asked, *sizes, False, recomputed, dtype)
        if "mae" in shape.terms:  # guess, target, weight and their difference, in float32
            n_voxels = n_large * shape.n_in_voxels(objective) * encoder.patch_voxels
            total += n_voxels * len(encoder.windows) * 4 * 4
    if "gram" in shape.terms:  # unit vectors, cosines and their difference, in float32
        total += n_large * shape.n_visible * 4 * (2 * encoder.width + 2 * shape.n_visible)
    if "cls" in shape.terms:
        local = shape.n_scans * shape.n_local * (shape.n_local_patches + prefix)
        total += _trunk(encoder, local, recomputed, dtype)
    return total


def _passing(recipe: PretrainRecipe, shape: StepShape, world_size: int, dtype: torch.dtype) -> int:
    encoder = recipe.encoder
    if not shape.terms & {"lat", "cls", "gram"}:
        return 0
    kept = shape.n_scans * shape.n_global * (shape.n_kept + 1 + encoder.n_registers)
    block = encoder.width * (3 * 4 + dtype.itemsize * (4 + 2 * encoder.mlp_ratio))
    patches = len(encoder.windows) * encoder.patch_voxels * (4 + dtype.itemsize)
    total = kept * max(block, patches)
    return total + (_prototypes(recipe, shape, world_size) if "cls" in shape.terms else 0)


def _trunk(encoder: EncoderConfig, n_tokens: int, recomputed: bool, dtype: torch.dtype) -> int:
    patches = n_tokens * len(encoder.windows) * encoder.patch_voxels * dtype.itemsize
    scaled = encoder.layer_scale is not None
    sizes = encoder.width, encoder.depth, encoder.mlp_ratio
    return patches + _blocks(n_tokens, *sizes, scaled, recomputed, dtype)


def _blocks(
    n_tokens: int,
    width: int,
    depth: int,
    mlp_ratio: int,
    scaled: bool,
    recomputed: bool,
    dtype: torch.dtype,
) -> int:
    """What the blocks keep for the backward pass: two norm inputs in float32, the rest as computed.

    As computed: the input of qkv; q, k, v and what attention gives, twice; the input of the MLP,
    its hidden layer before and after GELU; with LayerScale, the output of both branches.
    """
    kept = 2 * 4 + dtype.itemsize * (7 + 2 * mlp_ratio + 2 * scaled)
    if recomputed:
        return n_tokens * width * (depth * 4 + kept)
    return n_tokens * width * depth * kept


def _prototypes(recipe: PretrainRecipe, shape: StepShape, world_size: int) -> int:
    """Logits of student and teacher, float32, with what is made of them."""
    cls = recipe.objective.cls
    if cls.objective == "coding-rate":
        return 0
    prototypes = getattr(cls, cls.objective)
    student = (shape.n_global + shape.n_local) * shape.n_scans
    teacher = shape.n_global * shape.n_scans * world_size + getattr(prototypes, "n_queue", 0)
    return 4 * int(prototypes.n_prototypes) * (3 * student + 2 * teacher)


def _views(maker: ViewMaker, shape: StepShape) -> int:
    z, y, x = maker.shape_zyx
    lz, ly, lx = maker.local_shape
    large = (2 if maker.config.keep_clean else 1) * shape.n_global * z * y * x
    small = shape.n_local * lz * ly * lx
    volumes = 2 * z * y * x
    once = volumes + 4 * (large + small)
    making = 4 * (VIEW_COPIES - 1) * max(large, small)
    return shape.n_scans * (BATCHES_ALIVE * once + making)
