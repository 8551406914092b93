"""ViewBatch: what one step of training sees, and ViewMaker, which makes it from HU on the device.

Everything random is drawn first, in numpy, from (seed, epoch, position), and only then applied: the
views of a scan do not depend on the batch, the device or the world size they are made in. Only the
shape of the global crops and the masked share belong to the batch; they follow from (seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headct.config import Config
from headct.views.augment import AugmentConfig
from headct.views.crop import (
    CropConfig,
    PoseConfig,
    global_shapes,
    local_shape,
    place_globals,
    place_locals,
    place_stretched,
)
from headct.views.cut import Path, Placement, Shape, cut
from headct.views.draws import Drawn, generator
from headct.views.mask import MaskConfig, draw_mask, patch_occupancy
from headct.volume.preprocessing import Preprocessing
from headct.volume.volume import Zyx


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of a batch of scans, rectangular, on one device.

    Attributes:
        globals_hu: [b g z y x] float32; large crops after augmentation.
        locals_hu: [b l z' y' x'] float32; small crops at native size; l may be 0.
        keep: [b g t] int64, ascending; flat patch index (z, y, x order) of the computed tokens.
        masked: [b g t] bool over `keep`; True = removed from the student's input. Every view of a
            batch has the same number of masked tokens.
        flipped: [b g] bool; True = left and right are exchanged in this global view.
        spacing_mm_zyx: voxel size of every view.
        clean_hu: [b g z y x] float32; the large crops before augmentation, where they are kept.
    """

    globals_hu: Tensor
    locals_hu: Tensor
    keep: Tensor
    masked: Tensor
    flipped: Tensor
    spacing_mm_zyx: Zyx
    clean_hu: Tensor | None = None

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


class ViewsConfig(Config):
    """How views are made."""

    crop: CropConfig = CropConfig()
    pose: PoseConfig = PoseConfig()
    augment: AugmentConfig = AugmentConfig()
    mask: MaskConfig = MaskConfig()
    keep_clean: bool = False
    """Keep the large crops as they were before augmentation, too: L_pix then asks for these, and
    the encoder learns to undo what scanners do (decision 0039)."""

    @property
    def path(self) -> Path:
        """The cheapest way to cut these views."""
        return "axes" if self.crop.stretch and self.pose.path == "slice" else self.pose.path


class ViewMaker:
    """Makes the views of a batch on the device that holds its HU.

    Args:
        config: the recipe's views.
        preprocessing: the grid of the scans.
        patch_voxels_zyx: voxels of the encoder's patch on that grid.
        select_tokens: HU views [n z y x] -> [n t] int64, ascending patch numbers to compute.
        seed: of the run.

    Raises:
        UsageError: crops, patches and grid contradict each other.
    """

    def __init__(
        self,
        config: ViewsConfig,
        preprocessing: Preprocessing,
        patch_voxels_zyx: Shape,
        select_tokens: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.config, self.patch, self.seed = config, patch_voxels_zyx, seed
        self.select_tokens = select_tokens
        self.shape_zyx, self.spacing_mm_zyx = preprocessing.shape_zyx, preprocessing.spacing_mm_zyx
        self.global_edges = global_shapes(config.crop, self.shape_zyx, self.patch)
        self.local_shape = local_shape(config.crop, self.shape_zyx, self.spacing_mm_zyx, self.patch)
        self.n_patches = math.prod(n // p for n, p in zip(self.shape_zyx, self.patch, strict=True))
        self._bank = config.augment.noise.bank(self.shape_zyx, self.spacing_mm_zyx)

    def make(
        self, hu: Tensor, places: Sequence[tuple[int, int]], step: int, *, with_locals: bool = True
    ) -> ViewBatch:
        """The views of a batch.

        Args:
            hu: [b z y x] int16 on the training device.
            places: (epoch, position) of each scan in the data order.
            step: global step; decides the shape of the global crops and the masked share.
            with_locals: False leaves the local crops out, where no term needs them.
        """
        rng = generator(self.seed, "batch", step)
        z, y, x = (int(rng.choice(edges)) for edges in self.global_edges)
        self._bank = self._bank.to(hu.device)
        drawn = [self.draw(epoch, position) for epoch, position in places]
        with _one_thread(hu.device):
            large, clean, keep, small, flipped = self._views(hu, drawn, (z, y, x), with_locals)
        masked = self._mask(keep, (z, y, x), drawn, rng)
        return ViewBatch(large, small, keep, masked, flipped, self.spacing_mm_zyx, clean)

    def draw(self, epoch: int, position: int) -> tuple[Drawn, Drawn]:
        """All random parameters of one scan's global and local views."""
        rng = generator(self.seed, "views", epoch, position)
        crop, pose, augment = self.config.crop, self.config.pose, self.config.augment
        large = pose.draw(rng, crop.n_global) | augment.draw(rng, crop.n_global)
        large |= self.config.mask.draw(rng, crop.n_global, self.n_patches)
        small = pose.draw(rng, crop.n_local) | augment.draw(rng, crop.n_local)
        large |= crop.draw(rng, crop.n_global, crop.global_fraction)
        small |= crop.draw(rng, crop.n_local, crop.local_fraction)
        return large, small

    def _views(
        self, hu: Tensor, drawn: list[tuple[Drawn, Drawn]], shape_zyx: Shape, with_locals: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Global views, the same before augmentation where they are kept, their computed tokens,
        local views, and which global ones are flipped.
        """
        large = _stack([d[0] for d in drawn], hu.device)
        if self.config.crop.stretch:
            place = place_stretched(large, self.shape_zyx, self.spacing_mm_zyx)
        else:
            place = place_globals(large, shape_zyx, self.shape_zyx, self.spacing_mm_zyx)
        globals_hu = self._augmented(hu, place, large)
        clean_hu = None
        if self.config.keep_clean:
            clean_hu = cut(hu, place, (None,) * 3, self.config.path).view_as(globals_hu)
        keep = self.select_tokens(globals_hu.flatten(0, 1)).view(len(hu), globals_hu.shape[1], -1)
        flipped = large["flip"].view(len(hu), -1) > 0
        locals_hu = self._locals(hu, drawn, self.config.crop.n_local if with_locals else 0)
        return globals_hu, clean_hu, keep, locals_hu, flipped

    def _locals(self, scans: Tensor, drawn: list[tuple[Drawn, Drawn]], n_local: int) -> Tensor:
        if n_local == 0:
            shape = (len(scans), 0, *self.local_shape)
            return scans.new_empty(shape, dtype=torch.float32)
        small = _stack([d[1] for d in drawn], scans.device)
        if self.config.crop.stretch:
            place = place_stretched(small, self.shape_zyx, self.spacing_mm_zyx)
            return self._augmented(scans, place, small)
        occupancy = patch_occupancy(scans, self.patch).repeat_interleave(n_local, 0)
        place = place_locals(small, self.local_shape, occupancy, self.patch, self.spacing_mm_zyx)
        return self._augmented(scans, place, small)

    def _augmented(self, scans: Tensor, place: Placement, drawn: dict[str, Tensor]) -> Tensor:
        config = self.config
        spread = config.augment.spread(drawn, place)
        views = cut(scans, place, spread, config.path)
        views = config.augment.apply(views, drawn, place, self._bank)
        return views.view(len(scans), -1, *place.shape_zyx)

    def _mask(
        self,
        keep: Tensor,
        shape_zyx: Shape,
        drawn: list[tuple[Drawn, Drawn]],
        rng: np.random.Generator,
    ) -> Tensor:
        z, y, x = (n // p for n, p in zip(shape_zyx, self.patch, strict=True))
        large = _stack([d[0] for d in drawn], keep.device)
        n_masked = self.config.mask.draw_n_masked(rng, keep.shape[2])
        return draw_mask(keep.flatten(0, 1), (z, y, x), large, n_masked).view_as(keep)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU without torch's threads: views are thousands of small operations, and threads that
    wait for each other at every one of them cost many times the work where cores are shared.
    """
    n_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _stack(drawn: list[Drawn], device: torch.device) -> dict[str, Tensor]:
    """Views of several scans one after another, [n ...] on the device, in one transfer."""
    joined = {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0]}
    packed = torch.from_numpy(np.concatenate([values.ravel() for values in joined.values()]))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    parts = torch.split(packed, [values.size for values in joined.values()])
    return {
        name: part.view(values.shape)
        for (name, values), part in zip(joined.items(), parts, strict=True)
    }
