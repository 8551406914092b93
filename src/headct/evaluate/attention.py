"""Where an encoder looks: attention over a scan, plain or weighted by what moves a score.

Maps live on the canonical grid, so they have the affine of the scan and lie on it in any viewer.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from headct.adapt.attentive import AttentiveHead, load_attentive
from headct.adapt.logistic import Logistic
from headct.adapt.network import VECTORS, ReadoutHead
from headct.adapt.readout import Readout
from headct.adapt.task import Task
from headct.errors import MismatchError
from headct.model.attention import attention_weights
from headct.model.blocks import Block
from headct.model.embed import Bundle
from headct.model.tokens import (
    Tokens,
    grid_shape,
    select_head_tokens,
)
from headct.volume.volume import Volume, Zyx
from headct.volume.window import BRAIN

Heat = NDArray[np.float32]
Head = Callable[[Tokens], Tensor]
AIR_HU = -500
SLICE_PIXELS = 132


def attention_volume(bundle: Bundle, volume: Volume) -> Volume:
    """Attention of CLS to the patches in the last block, mean over heads.

    Args:
        bundle: the encoder.
        volume: canonical, [z y x].

    Returns:
        float32 on the same grid, largest value 1, 0 where no patch was computed.
    """
    weights = bundle.attention_map(volume.hu[None])[0].mean(axis=0)  # [gz gy gx]
    return _on_grid(bundle, volume, torch.from_numpy(weights), "attention")


def gradient_attention_volume(bundle: Bundle, head: Head, finding: int, volume: Volume) -> Volume:
    """Attention of the last block, weighted by how much it raises the score of one finding.

    Each weight is multiplied with the gradient of the logit, negative products are dropped, and
    what a patch gives to all tokens is summed: the readout uses patches as well as CLS.

    Args:
        bundle: the encoder.
        head: tokens -> logits [b f]; see `head_of`.
        finding: column of the logits.
        volume: canonical, [z y x].

    Returns:
        As `attention_volume`.

    Source:
        Chefer et al. 2021, Generic Attention-model Explainability, equation 5 (one layer).
    """
    hu = torch.as_tensor(volume.hu[None])
    encoder, config = bundle.encoder, bundle.encoder.config
    keep = select_head_tokens(hu, config.n_tokens, config.patch_voxels_zyx)
    patches = encoder.window_patches(hu, keep, encoder.own_windows(hu.device))
    spacing = bundle.preprocessing.spacing_mm_zyx
    centre_mm = encoder.centres_mm(keep, hu.shape[1:], spacing)
    grid = grid_shape(hu.shape[1:], config.patch_voxels_zyx)
    with torch.no_grad():
        x, rotation = encoder.embed(patches, centre_mm, keep, grid)
        for block in encoder.blocks[:-1]:
            x = block(x, rotation)
    last = encoder.blocks[-1]
    assert isinstance(last, Block)
    x, weights = _last_block(last, x.detach(), rotation)
    x = encoder.norm(x)
    n = encoder.n_prefix
    tokens = Tokens(x[:, 0], x[:, 1:n], x[:, n:], keep, centre_mm, grid)
    (gradient,) = torch.autograd.grad(head(tokens)[0, finding], weights)
    gain = (weights * gradient).clamp(min=0).mean(dim=1).sum(dim=1)[0, n:]  # [t]
    flat = torch.zeros(grid).flatten().scatter(0, keep[0], gain.detach())
    return _on_grid(bundle, volume, flat.view(grid), "gradient-weighted attention")


def query_attention_volume(
    bundle: Bundle, head: AttentiveHead, finding: int, volume: Volume
) -> Volume:
    """How much the query of a finding takes from each patch, in an attentive probe.

    Args:
        bundle: the encoder.
        head: of the probe.
        finding: column of its logits.
        volume: canonical, [z y x].

    Returns:
        As `attention_volume`.
    """
    tokens = bundle.encode_hu(volume.hu[None])
    with torch.no_grad():
        _, weights = head.looked_up(tokens.patches.float().cpu(), tokens.centre_mm.float().cpu())
    flat = torch.zeros(tokens.grid_zyx).flatten()
    flat = flat.scatter(0, tokens.index[0].cpu(), weights[0, finding])
    return _on_grid(bundle, volume, flat.view(tokens.grid_zyx), "attention of the query")


def _last_block(block: Block, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
    """The block's output, and its attention weights [b h t t] as a leaf to differentiate by."""
    q, k, v = block.attn.queries_keys_values(block.norm1(x), rotation)
    weights = attention_weights(q, k).detach().requires_grad_()
    mixed = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    x = x + block.branch1(mixed)
    return x + block.branch2(block.mlp(block.norm2(x))), weights


def head_of(task: Task) -> Head:
    """The head of a task as a function that can be differentiated.

    Raises:
        MismatchError: the task does not read the tokens of an encoder.
    """
    if task.info.kind == "attentive":
        attentive = load_attentive(task)
        return lambda tokens: attentive(tokens.patches, tokens.centre_mm)
    if task.info.vectors != VECTORS or "weight" not in task.arrays:
        raise MismatchError(
            f"a {task.info.kind} task on {task.info.source} features has no tokens to look at",
            remedy="use a probe on an encoder, or a fine-tuned task",
        )
    arrays = {
        name.removeprefix("readout."): values
        for name, values in task.arrays.items()
        if name.startswith("readout.")
    }
    head = Logistic.from_arrays(task.arrays)
    return ReadoutHead(Readout(VECTORS, arrays), head).eval().requires_grad_(False)


def _on_grid(bundle: Bundle, volume: Volume, weights: Tensor, name: str) -> Volume:
    """Patch weights [gz gy gx] as a smooth map on the voxels of the scan."""
    patch = bundle.encoder.config.patch_voxels_zyx
    size = [n * p for n, p in zip(weights.shape, patch, strict=True)]
    smooth = F.interpolate(weights[None, None].float(), size=size, mode="trilinear")[0, 0]
    z, y, x = volume.shape_zyx
    heat = smooth[:z, :y, :x].numpy()
    heat = heat / max(float(heat.max()), 1e-12)
    step = {"step": name, "bundle": bundle.hash}
    return volume.with_step(step, hu=heat.astype(np.float32))


def montage(
    hu: NDArray[np.int16], heats: Sequence[Heat], spacing_mm_zyx: Zyx, *, n_slices: int = 8
) -> bytes:
    """Axial slices in the brain window from below to above, and a row of them under each map.

    Radiological convention: anterior up, the patient's right on the left, marked R and L. Colour
    starts at the median of a map over tissue: what is like everywhere else stays grey.

    Args:
        hu: canonical, [z y x].
        heats: maps, each [z y x] in [0, 1].
        spacing_mm_zyx: mm, so that pixels have their true shape.
        n_slices: columns.

    Returns:
        A PNG.
    """
    places = shown_slices(hu, n_slices)
    _, mm_y, mm_x = spacing_mm_zyx
    size = round(SLICE_PIXELS * hu.shape[1] * mm_y / (hu.shape[2] * mm_x)), SLICE_PIXELS
    grey = _resized(BRAIN.apply(hu[places].astype(np.float32)) / 2 + 0.5, size)[..., None]
    rows = [grey.repeat(3, axis=-1)]
    for heat in heats:
        shown = _resized(_above_median(heat, hu > AIR_HU)[places], size)
        warm = colormaps["inferno"](shown)[..., :3]
        share = 0.8 * shown[..., None]
        rows.append(grey * (1 - share) + warm * share)
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return _marked_png(picture, n_slices)


def _above_median(heat: Heat, tissue: NDArray[np.bool_]) -> Heat:
    """0 up to the median over tissue, 1 at its top half percent."""
    low, high = np.quantile(heat[tissue], [0.5, 0.995]) if tissue.any() else (0.0, 1.0)
    scaled: Heat = ((heat - low) / max(float(high - low), 1e-6)).clip(0, 1).astype(np.float32)
    return scaled * tissue


def _resized(slices: Heat, size: tuple[int, int]) -> Heat:
    """Axial slices [n y x] turned as people look at them, in pixels [n height width]."""
    turned = torch.from_numpy(np.stack([radiological(one) for one in slices]))
    bigger = F.interpolate(turned[:, None], size=size, mode="bilinear", antialias=True)
    return np.asarray(bigger[:, 0].numpy())


def _marked_png(picture: NDArray[np.float64], n_slices: int) -> bytes:
    """The picture [height width 3] with R and L on the slices of its first row."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    figure.figimage(picture.clip(0, 1), origin="upper")
    for column in range(n_slices):
        for place, side in ((0.06, "R"), (0.94, "L")):
            x, y = (column + place) / n_slices, 1 - 5 / height
            figure.text(x, y, side, color="#dddddd", fontsize=6.5, va="top", ha="center")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def radiological(axial: NDArray[np.float32]) -> NDArray[np.float32]:
    """An axial slice [y x] of a canonical volume as people look at it: from the patient's feet."""
    return np.ascontiguousarray(axial[::-1, ::-1])


def shown_slices(hu: NDArray[np.int16], n_slices: int) -> list[int]:
    """Evenly spaced slices of the part of the grid that holds tissue, without its ends."""
    inside = np.flatnonzero((hu > AIR_HU).mean(axis=(1, 2)) > 0.05)
    low, high = (inside[0], inside[-1]) if len(inside) else (0, len(hu) - 1)
    places = np.linspace(low, high, n_slices + 2)[1:-1]
    return [int(z) for z in np.round(places)]
