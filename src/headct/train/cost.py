"""What a step costs in floating-point operations, counted from the shapes of its views."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from headct.model.architecture import EncoderConfig
from headct.objective.config import JointConfig
from headct.views.batch import ViewBatch, ViewMaker

TERMS = ("mae", "lat", "cls", "gram")
FORWARD, WEIGHT_GRADIENT, TRAINED = 1, 1, 3
"""Passes through a product: forward, gradient of weights, and both with that of the input."""


@dataclass(frozen=True)
class StepShape:
    """Sizes of one micro-batch on one rank.

    Attributes:
        n_scans: b.
        n_global: large views per scan.
        n_kept: patches of each that are computed.
        n_masked: those of them that the student does not see.
        n_local: small views per scan.
        n_local_patches: patches of each.
        terms: names of the terms whose weight is not 0.
    """

    n_scans: int
    n_global: int
    n_kept: int
    n_masked: int
    n_local: int
    n_local_patches: int
    terms: Set[str]

    @property
    def n_visible(self) -> int:
        """Patches of a large view that the student sees."""
        return self.n_kept - self.n_masked

    def n_asked(self, config: JointConfig) -> int:
        """Masked patches of a large view that the decoder predicts."""
        if not self.terms & {"mae", "lat"}:
            return 0
        return config.mae.n_asked(self.n_masked)

    def n_in_voxels(self, config: JointConfig) -> int:
        """Patches of a large view whose voxels the decoder predicts, masked and visible ones."""
        if "mae" not in self.terms:
            return 0
        return self.n_asked(config) + round(config.mae.visible_fraction * self.n_visible)


def terms_at(config: JointConfig, step_fraction: float) -> Set[str]:
    """Terms that count after a share of the run."""
    terms = {name: getattr(config, name) for name in TERMS}
    return {name for name, term in terms.items() if term.weight_at(step_fraction) > 0}


def shape_of(views: ViewBatch, encoder: EncoderConfig, terms: Set[str]) -> StepShape:
    """The sizes of a micro-batch."""
    n_scans, n_global, n_kept = views.keep.shape
    voxels = views.locals_hu.shape[2:].numel()
    return StepShape(
        n_scans,
        n_global,
        n_kept,
        views.n_masked,
        views.locals_hu.shape[1],
        voxels // encoder.patch_voxels,
        terms,
    )


def largest_shape(
    maker: ViewMaker, encoder: EncoderConfig, n_scans: int, terms: Set[str]
) -> StepShape:
    """The sizes of the costliest micro-batch of a run: with the fewest patches masked."""
    crop, mask = maker.config.crop, maker.config.mask
    n_kept = min(encoder.n_tokens, maker.n_patches)
    z, y, x = maker.local_shape
    return StepShape(
        n_scans,
        crop.n_global,
        n_kept,
        round(mask.ratio[0] * n_kept),
        crop.n_local,
        z * y * x // encoder.patch_voxels,
        terms,
    )


def step_flops(shape: StepShape, config: JointConfig, encoder: EncoderConfig) -> float:
    """Floating-point operations of a micro-batch, forward and backward; recomputing not counted.

    Counted are matrix products (two operations for each multiplication), with attention's. Norms,
    activations, views and the optimizer are left out, as is usual for model FLOPs.
    """
    prefix = 1 + encoder.n_registers
    n_views = shape.n_scans * shape.n_global
    total = n_views * _encoder(encoder, shape.n_visible, prefix, trained=True)
    if shape.terms & {"lat", "cls"}:
        total += n_views * _encoder(encoder, shape.n_kept, prefix, trained=False)
    if "gram" in shape.terms:
        total += n_views * _encoder(encoder, shape.n_kept, prefix, trained=False)
        pairs = 2.0 * shape.n_visible**2 * encoder.width
        total += n_views * (TRAINED + FORWARD) * pairs
    if shape.terms & {"mae", "lat"}:
        total += n_views * _decoder(shape, config, encoder, shape.n_visible + prefix)
    if "cls" in shape.terms:
        local = _encoder(encoder, shape.n_local_patches, prefix, trained=True)
        total += shape.n_scans * (shape.n_local * local + _heads(shape, config, encoder.width))
    return total


def _block(n_tokens: int, width: int, mlp_ratio: int) -> float:
    """Products of one block on one sequence, forward."""
    linear = 2.0 * n_tokens * width**2 * (4 + 2 * mlp_ratio)
    return linear + 4.0 * n_tokens**2 * width


def _encoder(encoder: EncoderConfig, n_patches: int, prefix: int, *, trained: bool) -> float:
    embed = 2.0 * n_patches * len(encoder.windows) * encoder.patch_voxels * encoder.width
    blocks = encoder.depth * _block(n_patches + prefix, encoder.width, encoder.mlp_ratio)
    if trained:
        return (FORWARD + WEIGHT_GRADIENT) * embed + TRAINED * blocks
    return embed + blocks


def _decoder(shape: StepShape, config: JointConfig, encoder: EncoderConfig, n_seen: int) -> float:
    width, n_asked = config.decoder.width, shape.n_asked(config)
    total = 2.0 * n_seen * encoder.width * width
    total += config.decoder.depth * _block(n_seen + n_asked, width, encoder.mlp_ratio)
    n_voxels = shape.n_in_voxels(config) * encoder.patch_voxels
    total += 2.0 * n_voxels * width * len(encoder.windows)
    if "lat" in shape.terms:
        total += 2.0 * n_asked * width * encoder.width
    return TRAINED * total


def _heads(shape: StepShape, config: JointConfig, width: int) -> float:
    """Projection heads and prototypes for one scan."""
    cls = config.cls
    mlp = 2.0 * (width * cls.hidden + cls.hidden**2 + cls.hidden * cls.out)
    n_views = shape.n_global + shape.n_local
    total = (TRAINED * n_views + shape.n_global) * mlp
    if cls.objective != "coding-rate":
        n_prototypes = getattr(cls, cls.objective).n_prototypes
        total += 2.0 * (TRAINED * n_views + shape.n_global) * cls.out * n_prototypes
    return total
