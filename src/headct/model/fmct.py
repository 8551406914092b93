"""Weights of FM-CT in the layout of its authors -> an encoder here.

    theirs                                          here
    patch_embedding.patch_embeddings  Conv3d        patch_embed      Linear over a patch
    patch_embedding.position_embeddings             positions.table
    cls_token, register_tokens                      cls, registers
    blocks.N.att_norm, attn.qkv, attn.proj          blocks.N.norm1, attn.qkv, attn.proj
    blocks.N.ffn_norm, mlp.linear1, mlp.linear2     blocks.N.norm2, mlp.fc1, mlp.fc2
    norm                                            norm

Their arrays are [x y z], ours [z y x]: kernel and positions are turned round, so that the encoder
says of [b c z y x] what theirs says of the same volume as [b c x y z]. Their code was not read:
the layout is that of the keys and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from headct.errors import CheckpointError, UsageError
from headct.model.architecture import ENCODERS, EncoderConfig
from headct.model.bundle import load_bundle, load_strictly, save_bundle
from headct.model.embed import Bundle
from headct.model.encoder import ViT3D
from headct.model.weights import read_weights, require_finite, strip_prefix, weights_hash
from headct.volume.preprocessing import PRESETS, Preprocessing, Stretch

KERNEL = "patch_embedding.patch_embeddings.weight"
POSITIONS = "patch_embedding.position_embeddings"
OUTSIDE_BLOCKS = (KERNEL, "patch_embedding.patch_embeddings.bias", POSITIONS, "cls_token")
REGISTERS = "register_tokens"
PARTS = {
    "att_norm": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "ffn_norm": "norm2",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
}
"""Modules of a block: theirs -> ours."""
OWN = ("patch_embedding.", "blocks.", "norm.", "cls_token", REGISTERS)
"""Starts of the keys of the encoder; heads, decoders and the like are left out."""
HEAD_WIDTH, HEADS = 64, 12
AS_SAVED = "give the encoder's checkpoint as its authors save it (docs/how-to/import)"
Shape = tuple[int, int, int]


def import_fmct(
    weights: Path,
    out: Path,
    heads: int | None = None,
    preprocessing: Preprocessing = PRESETS["fmct"],
) -> Bundle:
    """Write a bundle from a checkpoint of FM-CT.

    Args:
        weights: torch or safetensors file, read without running anything in it.
        out: BUNDLE folder; the same bundle may be there.
        heads: attention heads, which the weights do not tell; None: of 64 numbers each as in the
            original, or 12 where that does not divide the width.
        preprocessing: how its input is made, of channels (`fmct`) or of HU (`fmct-hu`). With the
            original's shape, 96^3, the weights tell the edge of their own cube; another shape must
            be theirs.

    Returns:
        The bundle as it was written.

    Raises:
        CheckpointError: not such a file, weights of another architecture, or not finite.
        UsageError: heads that do not divide the width, a preprocessing that stretches nothing, or
            something else at `out`.
    """
    if preprocessing.stretched is None:
        raise UsageError("FM-CT sees stretched heads", remedy="take the grid fmct or fmct-hu")
    theirs = _encoder_part(read_weights(weights))
    require_finite(theirs)
    encoder = to_encoder(theirs, heads, preprocessing)
    grid, patch = encoder.config.position_grid_zyx, encoder.config.patch_voxels_zyx
    assert grid is not None
    shape = tuple(n * p for n, p in zip(grid, patch, strict=True))
    preprocessing = preprocessing.model_copy(update={"shape_zyx": shape})
    provenance = {
        "weights": "imported from the layout of FM-CT (Zhu et al. 2025)",
        "weights_hash": weights_hash(theirs),
        "heads": "given" if heads else "assumed, since the weights do not tell",
        "licence": "that of the original weights, which this file does not change",
    }
    save_bundle(out, encoder, preprocessing, provenance, replace=False)
    return load_bundle(out)


def to_encoder(
    weights: Mapping[str, Tensor],
    heads: int | None = None,
    preprocessing: Preprocessing = PRESETS["fmct"],
) -> ViT3D:
    """The encoder of weights in their layout, without prefixes; arguments as for `import_fmct`."""
    depth = _check_keys(weights)
    config = _architecture(weights, depth, heads, preprocessing)
    grid = config.position_grid_zyx
    assert grid is not None
    ours = {
        "patch_embed.weight": weights[KERNEL].permute(0, 1, 4, 3, 2).flatten(1),
        "patch_embed.bias": weights["patch_embedding.patch_embeddings.bias"],
        "positions.table": _zyx_order(weights[POSITIONS], grid),
        "cls": weights["cls_token"].reshape(1, 1, -1),
        "registers": _registers(weights),
    }
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = weights[f"norm.{kind}"]
        for block in range(depth):
            for their, our in PARTS.items():
                ours[f"blocks.{block}.{our}.{kind}"] = weights[f"blocks.{block}.{their}.{kind}"]
    encoder = ViT3D(config).eval()
    floats = {name: tensor.float() for name, tensor in ours.items()}
    load_strictly(encoder, floats, "the weight file", AS_SAVED)
    return encoder


def _encoder_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's own weights, without what wrappers put before their names."""
    wanted = [*OUTSIDE_BLOCKS, REGISTERS, "norm.weight", "norm.bias"]
    wanted += [f"blocks.{block}.{part}.weight" for block in range(64) for part in PARTS]
    own = strip_prefix(weights, wanted)
    own = {name: tensor for name, tensor in own.items() if name.startswith(OWN)}
    for name in [n for n in own if n.endswith("attn.qkv.weight")]:
        bias = name.replace("weight", "bias")  # MONAI's attention has none unless asked
        own.setdefault(bias, torch.zeros(len(own[name])))
    return own


def _check_keys(weights: Mapping[str, Tensor]) -> int:
    """The number of blocks.

    Raises:
        CheckpointError: missing or unknown keys.
    """
    numbers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    depth = len(numbers)
    kinds = ("weight", "bias")
    expected = {*OUTSIDE_BLOCKS, *(f"norm.{kind}" for kind in kinds)}
    expected |= {f"blocks.{n}.{p}.{kind}" for n in range(depth) for p in PARTS for kind in kinds}
    faults = [f"missing {name}" for name in sorted(expected - weights.keys())]
    faults += [f"unknown {name}" for name in sorted(weights.keys() - expected - {REGISTERS})]
    if faults or not depth:
        shown = faults[:12] + [f"and {len(faults) - 12} more"] * (len(faults) > 12)
        raise _other("\n  ".join(["its keys are not FM-CT's:", *shown]))
    return depth


def _architecture(
    weights: Mapping[str, Tensor], depth: int, heads: int | None, preprocessing: Preprocessing
) -> EncoderConfig:
    kernel, positions = weights[KERNEL], weights[POSITIONS]
    width = weights["cls_token"].shape[-1]
    if kernel.ndim != 5:
        raise _other(f"{KERNEL} has {kernel.ndim} axes, the kernel of a Conv3d has 5")
    original, stretch = ENCODERS["fmct"], preprocessing.stretched or Stretch()
    windows = stretch.windows or original.windows
    if kernel.shape[1] != len(windows):
        raise _other(f"it takes {kernel.shape[1]} channels, there are {len(windows)} windows")
    n_patches = positions.shape[-2] if positions.ndim > 1 else 0
    z, y, x = kernel.shape[:1:-1]
    grid = _patch_grid(n_patches, (z, y, x), preprocessing.shape_zyx)
    heads = heads or (width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else HEADS)
    mlp_ratio, rest = divmod(len(weights["blocks.0.mlp.linear1.weight"]), width)
    if rest or not mlp_ratio:
        raise _other("the MLP is no whole multiple of the width")
    values: dict[str, Any] = original.model_dump() | {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_ratio,
        "patch_voxels_zyx": (z, y, x),
        "n_tokens": n_patches,
        "n_registers": _registers(weights).shape[1],
        "position_grid_zyx": grid,
        "windows": windows,
        "channel_range": stretch.scaled_to,
    }
    try:
        return EncoderConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            f"{heads} heads do not divide the width {width}", remedy="give --heads"
        ) from error


def _patch_grid(n_patches: int, patch_zyx: Shape, shape_zyx: Shape) -> Shape:
    """Patches along z, y and x: of a shape that somebody gave, else of a cube."""
    give = "if they are for another shape, say which, in voxels: --set shape_zyx=[z,y,x]"
    if shape_zyx == PRESETS["fmct"].shape_zyx:
        edge = round(n_patches ** (1 / 3))
        if edge**3 != n_patches or n_patches == 0:
            raise _other(f"its {n_patches} positions are no cube of patches", give)
        return edge, edge, edge
    z, y, x = (n // patch for n, patch in zip(shape_zyx, patch_zyx, strict=True))
    if z * y * x != n_patches or any(n % p for n, p in zip(shape_zyx, patch_zyx, strict=True)):
        raise _other(
            f"its {n_patches} positions are for other patches than {patch_zyx} voxels of"
            f" {shape_zyx}",
            give,
        )
    return z, y, x


def _zyx_order(positions: Tensor, grid_zyx: Shape) -> Tensor:
    """Positions [1 n d] numbered x first -> [n d] numbered z first."""
    table = positions.reshape(*reversed(grid_zyx), -1)  # [x y z d]
    return table.permute(2, 1, 0, 3).flatten(0, 2)


def _registers(weights: Mapping[str, Tensor]) -> Tensor:
    width = weights["cls_token"].shape[-1]
    none = weights["cls_token"].new_zeros(1, 0, width)
    return weights[REGISTERS].reshape(1, -1, width) if REGISTERS in weights else none


def _other(what: str, remedy: str = AS_SAVED) -> CheckpointError:
    return CheckpointError(f"the weight file is of another architecture: {what}", remedy=remedy)
