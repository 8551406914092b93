"""Using an encoder: HU, channels, a file, a volume or a whole store -> tokens and embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headct.errors import CheckpointError, MismatchError, UsageError
from headct.model.encoder import ViT3D
from headct.model.tokens import Tokens, grid_shape, select_head_tokens
from headct.progress import track
from headct.store.ahead import SCANS_AT_ONCE, read_batches
from headct.store.store import Store, open_store
from headct.volume.canonical import to_canonical
from headct.volume.preprocessing import Preprocessing
from headct.volume.read import read_series
from headct.volume.stretched import require_hu
from headct.volume.stretched import to_channels as stretched_channels
from headct.volume.volume import Volume

SCANS_AT_ONCE_ON_A_GPU = 32


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors of one scan, or of the n scans of a store.

    Attributes:
        cls: [d] or [n d] float32; what the encoder gathers for the whole scan.
        mean: [d] or [n d]; average of the patch tokens.
        max: [d] or [n d]; largest value of each number over the patch tokens.
        region: [36 d] or [n 36 d]; patch tokens averaged in a 3 x 4 x 3 (z, y, x) grid.
        scan_ids: of a store, in the order of the rows; empty for one scan.
    """

    cls: NDArray[np.float32]
    mean: NDArray[np.float32]
    max: NDArray[np.float32]
    region: NDArray[np.float32]
    scan_ids: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Embedding], scan_ids: tuple[str, ...] = ()) -> Embedding:
        """The vectors of several batches, one after the other."""
        vectors = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name != "scan_ids"
        }
        return cls(**vectors, scan_ids=scan_ids)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An encoder with everything needed to use it; made by `load_bundle`.

    Attributes:
        encoder: frozen, in evaluation mode.
        preprocessing: how its input must be made.
        hash: identity of weights, architecture and preprocessing.
        provenance: where the weights come from.
        dtype: of the matrix products.
    """

    encoder: ViT3D
    preprocessing: Preprocessing
    hash: str
    provenance: Mapping[str, Any]
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.cls.device

    def encode_hu(self, hu: Tensor | NDArray[Any]) -> Tokens:
        """Tokens of canonical volumes.

        On a CPU scans are encoded one at a time, so that a scan has the same vector to the last
        digit in whatever company it comes.

        Args:
            hu: [b z y x] on the grid of the bundle's preprocessing.

        Raises:
            MismatchError: another grid.
            UsageError: the bundle's windows come before the grid, so that there are no HU on it;
                no scan; NaN or infinite HU.
        """
        hu = self._on_the_grid(hu)
        with self._computing():
            return _joined([self._encode_part(part) for part in self._parts(hu)])

    def encode_channels(self, channels: Tensor | NDArray[Any]) -> Tokens:
        """Tokens of volumes that were windowed already; every patch is computed.

        Args:
            channels: [b c z y x] in `encoder.config.channel_range`, windows as in
                `encoder.config.windows`, at the voxel size of the bundle's preprocessing; any field
                of view, but that of the preprocessing where the encoder's positions are learned.

        Raises:
            MismatchError: another number of channels, or a grid without positions.
            UsageError: no scan; NaN or infinite numbers.
        """
        channels = _checked(channels).float()
        if channels.ndim != 5 or channels.shape[1] != len(self.encoder.config.windows):
            raise MismatchError(
                f"channels have the shape {list(channels.shape)}",
                remedy=f"give [b {len(self.encoder.config.windows)} z y x]",
            )
        spacing = self.preprocessing.spacing_mm_zyx
        with self._computing():
            parts = self._parts(channels)
            return _joined([self.encoder(part.to(self.device), spacing) for part in parts])

    def attention_map(self, hu: Tensor | NDArray[Any]) -> NDArray[np.float32]:
        """Attention of CLS over the patch grid in the last block, per head.

        Args:
            hu: as for `encode_hu`.

        Returns:
            [b h gz gy gx]; 0 where a patch was not computed.
        """
        hu = self._on_the_grid(hu)
        patch, spacing = self.encoder.config.patch_voxels_zyx, self.preprocessing.spacing_mm_zyx
        grid = grid_shape(hu.shape[1:], patch)
        maps = []
        with self._computing():
            for part in self._parts(hu):
                keep = self._keep(part.to(self.device))
                weights = self.encoder.cls_attention(part.to(self.device), spacing, keep).float()
                empty = weights.new_zeros(*weights.shape[:2], math.prod(grid))
                places = keep[:, None].expand_as(weights)
                maps.append(torch.unflatten(empty.scatter(2, places, weights), 2, grid))
        return _numpy(torch.cat(maps))

    def embed(self, source: str | Path | Volume | Store) -> Embedding:
        """Vectors of one scan or of a store.

        Args:
            source: a DICOM folder or file, a NIfTI file, a `Volume` (brought to the canonical grid
                where it is not there yet), a store or the folder of one.

        Raises:
            Refusal: the series is not a head CT that can be read.
            CheckpointError: the encoder gives no finite numbers.
            MismatchError: a store or canonical volume of another preprocessing.
            UsageError: a store, for a bundle whose windows come before the grid; an array.
        """
        match source:
            case Volume():
                return self._embed_volume(source)
            case Store():
                return self._embed_store(source)
            case str() | Path():
                if (Path(source) / "store.json").is_file():
                    return self._embed_store(open_store(source))
                return self._embed_volume(read_series(source))
        raise UsageError(
            f"embed takes a path, a Volume or a Store, not {type(source).__name__}",
            remedy="give HU [b z y x] on the bundle's grid to encode_hu, windowed channels"
            " [b c z y x] to encode_channels",
        )

    def _embed_volume(self, volume: Volume) -> Embedding:
        stretch = self.preprocessing.stretched
        if stretch is not None and stretch.windows:
            tokens = self.encode_channels(stretched_channels(volume, self.preprocessing)[None])
        else:
            tokens = self.encode_hu(self.canonical(volume).hu[None])
        one = pooled(tokens)
        require_finite_vectors(one.cls)
        return Embedding(one.cls[0], one.mean[0], one.max[0], one.region[0])

    def canonical(self, volume: Volume) -> Volume:
        """The volume on the bundle's grid; one that is on it already is handed back.

        Raises:
            MismatchError: the volume was brought to another grid already.
            Refusal: no head in the volume.
        """
        last = volume.provenance[-1] if volume.provenance else {}
        made_with = last.get("preprocessing") if last.get("step") == "canonical" else None
        if made_with is None and not self._on_grid(volume):
            return to_canonical(volume, self.preprocessing)
        if made_with not in (None, self.preprocessing.hash):
            raise MismatchError(
                f"the volume has preprocessing {made_with}, the bundle {self.preprocessing.hash}",
                remedy="embed the series that it was made from",
            )
        return volume

    def _on_grid(self, volume: Volume) -> bool:
        if self.preprocessing.stretched is not None:
            return False
        axes = np.diag(self.preprocessing.spacing_mm_zyx)
        same_shape = volume.shape_zyx == self.preprocessing.shape_zyx
        return same_shape and np.allclose(volume.affine_zyx[:3, :3], axes, atol=1e-5)

    def _embed_store(self, store: Store) -> Embedding:
        require_hu(self.preprocessing)
        self.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
        n_batches = math.ceil(len(store) / SCANS_AT_ONCE)
        batches = track(read_batches(store), "embed", n_batches, unit="batches")
        parts = []
        for _, hu in batches:
            parts.append(pooled(self.encode_hu(hu)))
            require_finite_vectors(parts[-1].cls)
        return Embedding.joined(parts, tuple(store.scan_ids))

    def _encode_part(self, hu: Tensor) -> Tokens:
        hu = hu.to(self.device)
        return self.encoder.forward_hu(hu, self.preprocessing.spacing_mm_zyx, self._keep(hu))

    def _keep(self, hu: Tensor) -> Tensor:
        config = self.encoder.config
        return select_head_tokens(hu, config.n_tokens, config.patch_voxels_zyx)

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return torch.split(batch, 1 if self.device.type == "cpu" else SCANS_AT_ONCE_ON_A_GPU)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        reduced = self.dtype != torch.float32
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, self.dtype, enabled=reduced),
        ):
            yield

    def _on_the_grid(self, hu: Tensor | NDArray[Any]) -> Tensor:
        require_hu(self.preprocessing)
        hu = _checked(hu)
        grid, shape_zyx = self.preprocessing.shape_zyx, tuple(hu.shape[1:])
        if shape_zyx != grid:
            raise MismatchError(
                f"the bundle takes volumes of {grid} voxels, not {shape_zyx}",
                remedy="bring them to the bundle's grid: headct ingest, or bundle.embed(path)",
            )
        return hu


def _checked(scans: Tensor | NDArray[Any]) -> Tensor:
    """A batch in torch's order and byte order, of at least one scan and finite numbers."""
    if not isinstance(scans, Tensor):
        array = np.asarray(scans)
        if array.dtype.kind not in "biuf":
            raise UsageError(f"scans cannot be {array.dtype}", remedy="give real numbers")
        dtype = np.int64 if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
        scans = torch.from_numpy(np.require(array, dtype, ["C", "W"]))
    if scans.ndim == 0 or len(scans) == 0:
        raise UsageError("there is no scan in the batch", remedy="give one or more")
    if scans.is_floating_point() and not scans.isfinite().all():
        raise UsageError("the scans hold NaN or infinite numbers", remedy="give finite ones")
    return scans


def pooled(tokens: Tokens) -> Embedding:
    """Vectors of n scans from their tokens, on the CPU: each [n ...] float32."""
    patches = tokens.patches.float()
    return Embedding(
        cls=_numpy(tokens.cls),
        mean=_numpy(patches.mean(dim=1)),
        max=_numpy(patches.amax(dim=1)),
        region=_numpy(tokens.regions()),
    )


def require_finite_vectors(vectors: NDArray[Any]) -> None:
    """Raise CheckpointError where what an encoder made of a scan is not finite."""
    if not np.isfinite(vectors).all():
        raise CheckpointError(
            "the encoder gives no finite numbers for a scan",
            remedy="its training has diverged: train it again at lower rates, or take another",
            code="nonfinite-weights",
        )


def _numpy(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _joined(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return Tokens(
        cls=torch.cat([part.cls for part in parts]),
        registers=torch.cat([part.registers for part in parts]),
        patches=torch.cat([part.patches for part in parts]),
        index=torch.cat([part.index for part in parts]),
        centre_mm=torch.cat([part.centre_mm for part in parts]),
        grid_zyx=parts[0].grid_zyx,
    )
