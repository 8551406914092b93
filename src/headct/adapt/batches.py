"""Labelled scans for training: in an order drawn by the seed, lightly augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headct.store.ahead import READERS
from headct.store.labels import Labels
from headct.store.store import Store
from headct.views.augment import AugmentConfig, Cupping, Erase, MotionGhost, SkullBase
from headct.views.batch import ViewMaker, ViewsConfig, swap_lateralised
from headct.views.crop import CropConfig, PoseConfig
from headct.views.loader import ScanBatch, ScanLoader
from headct.views.mask import MaskConfig
from headct.views.spread import Kernel, SliceThickness

LIGHT = ViewsConfig(
    crop=CropConfig(n_global=1, n_local=0, global_fraction=(1.0, 1.0)),
    pose=PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0.05, shift_mm=6),
    augment=AugmentConfig(
        kernel=Kernel(probability=0.3),
        slice_thickness=SliceThickness(probability=0.3),
        cupping=Cupping(probability=0.2),
        skull_base=SkullBase(probability=0.2),
        motion_ghost=MotionGhost(probability=0.0),
        erase=Erase(probability=0.0),
    ),
    mask=MaskConfig(ratio=(0.0, 0.0)),
)
"""Augmentation of labelled scans: the whole volume, moved a little, as another scanner shows it."""


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Scans with what is known about them.

    Attributes:
        hu: [b z y x] float32, after augmentation.
        labels: [b f] int8: 1, 0, -1 unknown.
        scans: which they are, and which could not be read.
    """

    hu: Tensor
    labels: Tensor
    scans: ScanBatch

    def __len__(self) -> int:
        return len(self.hu)


class LabelledScans:
    """The training scans of a task, in a random order that is a function of the seed.

    Args:
        store: that holds them.
        labels: of the training scans alone.
        batch: scans per step.
        seed: of order and augmentation.
        augment: how they are changed; without flips where a finding names a side whose other side
            is not among them (`sides_alone`).
        device: where batches are made.
    """

    def __init__(
        self,
        store: Store,
        labels: Labels,
        batch: int,
        seed: int,
        augment: ViewsConfig,
        device: torch.device,
    ) -> None:
        self.labels, self.seed, self.device = labels, seed, device
        self.pairs = lateral_pairs(labels.findings)
        self.loader = ScanLoader(_Rows(store, labels), batch, seed, readers=READERS)
        if sides_alone(labels.findings):
            upright = augment.pose.model_copy(update={"flip_probability": 0.0})
            augment = augment.model_copy(update={"pose": upright})
        patch = store.preprocessing.shape_zyx  # tokens are chosen by the net
        self.maker = ViewMaker(augment, store.preprocessing, patch, _no_tokens, seed)

    @contextmanager
    def batches(self, first_step: int, last_step: int) -> Iterator[Iterator[LabelledBatch]]:
        """Batches of the steps first..last - 1, read ahead while they are used."""
        with self.loader.reading(first_step, last_step) as scans:
            numbered = enumerate(scans, first_step)
            yield (self.make(batch, step) for step, batch in numbered)

    def make(self, scans: ScanBatch, step: int) -> LabelledBatch:
        """Augment the scans of a step; each by its place in the data order."""
        hu = torch.from_numpy(scans.hu).to(self.device)
        views = self.maker.make(hu, scans.places, step, with_locals=False)
        labels = torch.from_numpy(self.labels.values[list(scans.rows)]).to(self.device)
        flipped = views.flipped[:, 0]
        swapped = swap_lateralised(labels, flipped, self.pairs)
        return LabelledBatch(views.globals_hu[:, 0], swapped, scans)


def _no_tokens(views_hu: Tensor) -> Tensor:
    return torch.zeros((len(views_hu), 1), dtype=torch.long, device=views_hu.device)


class _Rows:
    """A store seen through labels: row n is the n-th labelled scan."""

    def __init__(self, store: Store, labels: Labels) -> None:
        self.store, self.rows = store, labels.row
        self.scan_ids = [str(name) for name in labels.scan_id]

    def __len__(self) -> int:
        return len(self.rows)

    def read_hu(self, rows: Sequence[int]) -> NDArray[np.int16]:
        return self.store.read_hu([int(self.rows[row]) for row in rows])


def lateral_pairs(findings: Sequence[str]) -> list[tuple[int, int]]:
    """Columns of findings that name a side, `X_left` with `X_right`: a flip exchanges them."""
    columns = {name: column for column, name in enumerate(findings)}
    return [
        (column, columns[name.removesuffix("_left") + "_right"])
        for name, column in columns.items()
        if name.endswith("_left") and name.removesuffix("_left") + "_right" in columns
    ]


def sides_alone(findings: Sequence[str]) -> list[str]:
    """Findings that name a side and come without the other: of a mirrored scan nothing is known."""
    paired = {findings[column] for pair in lateral_pairs(findings) for column in pair}
    return [name for name in findings if name.endswith(("_left", "_right")) and name not in paired]
