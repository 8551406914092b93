"""Labelled scans for training: in an order drawn by the seed, lightly augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headct.config import Config
from headct.store.labels import Labels
from headct.store.store import Store
from headct.views.augment import AugmentConfig, Cupping, Erase, Gain, MotionGhost, Noise, SkullBase
from headct.views.batch import swap_lateralised
from headct.views.crop import PoseConfig, cut, place_globals
from headct.views.draws import generator
from headct.views.loader import ScanBatch, ScanLoader
from headct.views.spread import Kernel, SliceThickness
from headct.volume.preprocessing import Preprocessing


class LightAugment(Config):
    """Augmentation of labelled scans: whole volumes, small moves, what scanners differ in."""

    pose: PoseConfig = PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0.05, shift_mm=6)
    """Whole-volume moves; without rotation they are one small matrix per axis."""
    scanner: AugmentConfig = AugmentConfig(
        gain=Gain(),
        kernel=Kernel(probability=0.3),
        slice_thickness=SliceThickness(probability=0.3),
        cupping=Cupping(probability=0.2),
        skull_base=SkullBase(probability=0.2),
        motion_ghost=MotionGhost(probability=0.0),
        noise=Noise(),
        erase=Erase(probability=0.0),
    )
    """What another scanner would have done to the HU."""


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """Scans with what is known about them.

    Attributes:
        hu: [b z y x] float32, after augmentation.
        labels: [b f] int8: 1, 0, -1 unknown.
    """

    hu: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.hu)


class LabelledScans:
    """The training scans of a task, in a random order that is a function of the seed.

    Args:
        store: that holds them.
        labels: of the training scans alone.
        batch: scans per step.
        seed: of order and augmentation.
        augment: how they are changed.
        device: where batches are made.
    """

    def __init__(
        self,
        store: Store,
        labels: Labels,
        batch: int,
        seed: int,
        augment: LightAugment,
        device: torch.device,
    ) -> None:
        self.labels, self.seed, self.augment, self.device = labels, seed, augment, device
        self.preprocessing: Preprocessing = store.preprocessing
        self.pairs = lateral_pairs(labels.findings)
        self.loader = ScanLoader(_Rows(store, labels), batch, seed)
        shape, spacing = store.preprocessing.shape_zyx, store.preprocessing.spacing_mm_zyx
        self.bank = augment.scanner.noise.bank(shape, spacing).to(device)

    @contextmanager
    def batches(self, first_step: int, last_step: int) -> Iterator[Iterator[LabelledBatch]]:
        """Batches of the steps first..last - 1, read ahead while they are used."""
        with self.loader.reading(first_step, last_step) as scans:
            yield (self.make(batch) for batch in scans)

    def make(self, scans: ScanBatch) -> LabelledBatch:
        """Augment the scans of a step; each by its place in the data order."""
        drawn = self._draw(scans.places)
        shape, spacing = self.preprocessing.shape_zyx, self.preprocessing.spacing_mm_zyx
        at = place_globals(drawn, shape, shape, spacing)
        hu = torch.from_numpy(scans.hu).to(self.device).float()
        spread = self.augment.scanner.spread(drawn, at)
        views = cut(hu, at, spread, rotates=self.augment.pose.rotates)
        views = self.augment.scanner.apply(views, drawn, at, self.bank)
        labels = torch.from_numpy(self.labels.values[list(scans.rows)]).to(self.device)
        return LabelledBatch(views, swap_lateralised(labels, drawn["flip"] > 0, self.pairs))

    def _draw(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        rows = []
        for place in places:
            rng = generator(self.seed, "views", *place)
            rows.append(self.augment.pose.draw(rng, 1) | self.augment.scanner.draw(rng, 1))
        stacked = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return {name: torch.from_numpy(v).to(self.device) for name, v in stacked.items()}


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
