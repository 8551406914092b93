"""ViewBatch: what one step of training sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headct.volume.volume import Zyx


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of a batch of scans, rectangular, on one device.

    Attributes:
        globals_hu: [b g z y x] float32; large crops after augmentation.
        locals_hu: [b l z' y' x'] float32; small crops at native size; l may be 0.
        keep: [b g t] int64, ascending; flat patch index (z, y, x order) of the tokens that are computed.
        masked: [b g t] bool over `keep`; True = removed from the student's input. Every view of a
            batch has the same number of masked tokens.
        flipped: [b g] bool; True = left and right are exchanged in this global view.
        spacing_mm_zyx: voxel size of every view.
    """

    globals_hu: Tensor
    locals_hu: Tensor
    keep: Tensor
    masked: Tensor
    flipped: Tensor
    spacing_mm_zyx: Zyx

    def __len__(self) -> int:
        return self.globals_hu.shape[0]

    @property
    def n_masked(self) -> int:
        """Masked tokens of each global view."""
        return int(self.masked[0, 0].sum())


def swap_lateralised(labels: Tensor, flipped: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Labels of flipped scans with each (left, right) pair of columns exchanged.

    Args:
        labels: [b f].
        flipped: [b] bool.
        pairs: column numbers of findings that name a side, e.g. bleed left and bleed right.
    """
    order = list(range(labels.shape[1]))
    for left, right in pairs:
        order[left], order[right] = right, left
    return torch.where(flipped[:, None], labels[:, order], labels)
