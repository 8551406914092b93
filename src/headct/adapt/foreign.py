"""Encoders that other groups published, each with its own preprocessing, from local weight files.

Nothing is ever downloaded. A store gives canonical volumes; each adapter resamples them to the
grid, the orientation and the range of values that its encoder was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headct.adapt.features import Vectors
from headct.adapt.merlin import MerlinTrunk
from headct.errors import UsageError
from headct.model.bundle import load_strictly
from headct.model.weights import read_weights, require_finite, strip_prefix, weights_hash
from headct.volume.resample import resample
from headct.volume.volume import Zyx

Hu = NDArray[np.int16]
Values = NDArray[np.float32]
RANDOM = "random-"
"""Before the name of an encoder whose weights were never trained."""


@dataclass(frozen=True)
class Foreign:
    """How to use an encoder from elsewhere.

    Attributes:
        build: the network with new weights: input [1 c ...] -> vectors [1 d].
        prepare: canonical HU [z y x] and its mm per voxel -> input [c ...], float32.
    """

    build: Callable[[], nn.Module] = field(repr=False)
    prepare: Callable[[Hu, Zyx], Values] = field(repr=False)


@dataclass(frozen=True, eq=False)
class ForeignEncoder:
    """A loaded encoder.

    Attributes:
        source: what the feature table says of its vectors.
        hash: of the weights.
    """

    source: str
    hash: str
    network: nn.Module = field(repr=False)
    prepare: Callable[[Hu, Zyx], Values] = field(repr=False)

    def vectors(self, hu: Hu, spacing_mm_zyx: Zyx) -> Vectors:
        """Canonical HU [b z y x] -> `pooled` [b d], a scan at a time."""
        rows = []
        with torch.inference_mode():
            for scan in hu:
                values = torch.from_numpy(self.prepare(scan, spacing_mm_zyx))
                rows.append(self.network(values[None])[0].float().numpy())
        return {"pooled": np.stack(rows)}


def load_foreign(name: str, weights: Path | None, init_seed: int | None = None) -> ForeignEncoder:
    """An encoder by its name.

    Args:
        name: a key of ENCODERS.
        weights: local file as its authors publish it (safetensors or torch).
        init_seed: instead of weights: the architecture before any training.

    Raises:
        UsageError: both or none of weights and seed, or MONAI is absent where it is needed.
        CheckpointError: a file that is damaged, of another architecture, or not all finite.
    """
    if (weights is None) == (init_seed is None):
        raise UsageError(
            f"{name} wants its weights",
            remedy="give --weights FILE, or --random-init SEED for an untrained one; not both",
        )
    foreign = ENCODERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed or 0)
        network = foreign.build()
    if weights is not None:
        state = strip_prefix(read_weights(weights), network.state_dict())
        known = {k: v for k, v in state.items() if k.split(".")[0] not in _HEADS}
        load_strictly(network, known, "the weight file")
        require_finite(known)
    source = name if weights is not None else RANDOM + name
    digest = weights_hash(network.state_dict())
    return ForeignEncoder(source, digest, network.eval().requires_grad_(False), foreign.prepare)


_HEADS = ("classifier", "contrastive_head", "fc", "avgpool")
"""Parts of Merlin's image encoder past its features."""


class _DeepestMean(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps [b c z y x], each coarser than the one before -> vectors [b c] of the last."""
        return maps[-1].mean((2, 3, 4))


def _ct_fm() -> nn.Module:
    try:
        from monai.networks.nets.segresnet_ds import SegResEncoder
    except ImportError as error:
        raise UsageError("CT-FM needs MONAI", remedy="pip install 'headct[baselines]'") from error
    network: nn.Module = SegResEncoder(
        3, init_filters=32, in_channels=1, blocks_down=(1, 2, 2, 4, 4), head_module=_DeepestMean()
    )
    return network


def _for_ct_fm(hu: Hu, spacing_mm_zyx: Zyx) -> Values:
    """Axes to S, P, L; 3 x 1 x 1 mm; -1024 .. 2048 HU to 0 .. 1; cropped to what is not air.

    Source:
        Pai et al. 2025, Vision Foundation Models for Computed Tomography, and the model card.
    """
    fine = _regrid(hu, spacing_mm_zyx, (3.0, 1.0, 1.0))[:, ::-1, ::-1]
    values = np.clip((fine + 1024.0) / 3072.0, 0.0, 1.0)
    box = []
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        there = np.flatnonzero((values > 0).any(axis=rest))
        box.append(slice(there[0], there[-1] + 1) if there.size else slice(None))
    cut = values[tuple(box)]
    # its stride-2 steps want at least this much
    return _fitted(cut, tuple(max(16, n) for n in cut.shape), 0.0)[None]


MERLIN_SHAPE_ZYX = (160, 224, 224)


def _for_merlin(hu: Hu, spacing_mm_zyx: Zyx) -> Values:
    """3 x 1.5 x 1.5 mm, -1000 .. 1000 HU to 0 .. 1, 160 x 224 x 224, x before y, thrice.

    Source:
        Blankemeier et al. 2024, Merlin, and its published transforms (RAS, pad and centre crop).
    """
    fine = _regrid(hu, spacing_mm_zyx, (3.0, 1.5, 1.5))
    values = np.clip((fine + 1000.0) / 2000.0, 0.0, 1.0)
    zxy = _fitted(values, MERLIN_SHAPE_ZYX, 0.0).transpose(0, 2, 1)
    return np.ascontiguousarray(np.broadcast_to(zxy, (3, *zxy.shape)))


def _regrid(hu: Hu, spacing_mm_zyx: Zyx, wanted_mm_zyx: Zyx) -> Values:
    """The same field of view at another spacing."""
    extent = np.multiply(hu.shape, spacing_mm_zyx)
    shape = tuple(int(n) for n in np.maximum(1, np.rint(extent / wanted_mm_zyx)))
    native, target = (np.diag([*mm, 1.0]) for mm in (spacing_mm_zyx, wanted_mm_zyx))
    middle_mm = np.subtract(hu.shape, 1) / 2 * spacing_mm_zyx
    target[:3, 3] = middle_mm - np.subtract(shape, 1) / 2 * wanted_mm_zyx
    return np.asarray(resample(hu, native, target, shape), np.float32)


def _fitted(values: Values, shape: tuple[int, ...], fill: float) -> Values:
    """Padded with `fill`, or cut, about the middle."""
    out = np.full(shape, fill, np.float32)
    to, of = [], []
    for n, m in zip(values.shape, shape, strict=True):
        k = min(n, m)
        of.append(slice((n - k) // 2, (n - k) // 2 + k))
        to.append(slice((m - k) // 2, (m - k) // 2 + k))
    out[tuple(to)] = values[tuple(of)]
    return out


ENCODERS = {
    "ct-fm": Foreign(_ct_fm, _for_ct_fm),
    "merlin": Foreign(MerlinTrunk, _for_merlin),
}
"""Encoders by the name that `headct embed --encoder` takes."""
