"""Readout: the vectors of a scan -> one standardised vector, fitted on train scans alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headct.adapt.features import FeatureTable, Vectors
from headct.errors import MismatchError

N_CELLS = 36
"""Cells of the 3 x 4 x 3 grid over the head that `region` is pooled in."""
N_COMPONENTS = 32
"""Principal components of the tokens that are kept per cell."""
N_COMPONENTS_FEW_SCANS, FEW_SCANS = 192, 2000
"""The same up to so many train scans, where a fit costs little: what a lesion changes lies in
directions of little variance (decision 0042)."""
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Readout:
    """What was fitted; `arrays` is all of it, so it can be saved beside the head.

    Attributes:
        vectors: names of the vectors that are read, in order.
        arrays: `mean`, `scale` [d]; with region pooling `cell_mean` [cells w], `components` [w c].
    """

    vectors: tuple[str, ...]
    arrays: Arrays

    def apply(self, vectors: Vectors) -> NDArray[np.float64]:
        """Standardised features, [n d].

        Raises:
            MismatchError: a vector is absent or has another length.
        """
        absent = [name for name in self.vectors if name not in vectors]
        if absent:
            raise MismatchError(
                f"the features lack {', '.join(absent)}",
                remedy="use features of the kind that the task was fitted on",
            )
        joined = _join(self.vectors, vectors, self.arrays)
        if joined.shape[1] != len(self.arrays["mean"]):
            raise MismatchError("the features have another length", remedy="use the same encoder")
        return np.asarray((joined - self.arrays["mean"]) / self.arrays["scale"], dtype=np.float64)


def fit_readout(
    table: FeatureTable, train: NDArray[np.int64], n_components: int | None = None
) -> Readout:
    """Fit means, scales and the components of region pooling on some rows only.

    Tokens are centred cell by cell before the components are found: what differs between places of
    the head would fill them otherwise, what differs between heads is wanted.

    Args:
        table: features.
        train: rows that the fit sees.
        n_components: components per cell; None: as many as so many scans allow. An encoder that is
            trained further wants few: the scale of a small direction does not hold while it moves.
    """
    names = tuple(table.vectors)
    arrays: Arrays = {}
    if "region" in names:
        region = table.vectors["region"][train]
        few = N_COMPONENTS_FEW_SCANS if len(region) <= FEW_SCANS else N_COMPONENTS
        arrays |= _components(region, n_components or few)
    joined = _join(names, {name: table.vectors[name][train] for name in names}, arrays)
    scale = joined.std(0)
    arrays["mean"] = joined.mean(0).astype(np.float32)
    arrays["scale"] = np.where(scale > 1e-6, scale, np.inf).astype(np.float32)
    return Readout(names, arrays)


def _join(names: tuple[str, ...], vectors: Vectors, arrays: Arrays) -> NDArray[np.float32]:
    parts = [
        _project(vectors[name], arrays) if name == "region" else vectors[name] for name in names
    ]
    return np.concatenate(parts, axis=1)


def _project(region: NDArray[np.float32], arrays: Arrays) -> NDArray[np.float32]:
    """Tokens' mean per cell [n cells*w] -> their components per cell [n cells*c]."""
    cell_mean = arrays["cell_mean"]
    cells = region.reshape(len(region), *cell_mean.shape) - cell_mean
    projected = cells @ arrays["components"]  # [n cells c]
    return np.asarray(projected.reshape(len(region), -1), dtype=np.float32)


def _components(region: NDArray[np.float32], n_kept: int) -> Arrays:
    cells = region.reshape(len(region), N_CELLS, -1)
    mean = cells.mean(0)
    centred = (cells - mean).reshape(-1, cells.shape[2]).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    kept = vectors[:, ::-1][:, :n_kept]
    return {"cell_mean": mean.astype(np.float32), "components": kept.astype(np.float32)}
