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
from headct.views.draws import Drawn, Draws, generator, sent
from headct.views.mask import MaskConfig, draw_mask, patch_occupancy
from headct.volume.preprocessing import Preprocessing
from headct.volume.volume import Zyx

Parameters = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of a batch of scans, rectangular, on one device.

    Attributes:
        globals_hu: [b g z y x] float32; large crops after augmentation.
        locals_hu: [b l z' y' x'] float32; small crops at native size; l may be 0.
        keep: [b g t] int64, ascending; flat patch index (z, y, x order) of the computed tokens.
        masked: [b g t] bool over `keep`; True = removed from the student's input. Every view of a
            batch has the same number of masked tokens.
        n_masked: masked tokens of each global view.
        flipped: [b g] bool; True = left and right are exchanged in this global view.
        spacing_mm_zyx: voxel size of every view.
        clean_hu: [b g z y x] float32; the large crops before augmentation, where they are kept.
    """

    globals_hu: Tensor
    locals_hu: Tensor
    keep: Tensor
    masked: Tensor
    n_masked: int
    flipped: Tensor
    spacing_mm_zyx: Zyx
    clean_hu: Tensor | None = None

    def __len__(self) -> int:
        return self.globals_hu.shape[0]


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
        with _one_thread():
            large, small = self.draw(places)
            n_local = self.config.crop.n_local if with_locals else 0
            locals_hu = self._locals(hu, small, n_local)
            globals_hu, clean_hu = self._globals(hu, large, (z, y, x))
            keep = self.select_tokens(globals_hu.flatten(0, 1))
            n_masked = self.config.mask.draw_n_masked(rng, keep.shape[1])
            pz, py, px = self.patch
            masked = draw_mask(keep, (z // pz, y // py, x // px), large, n_masked)
        by_scan = (len(hu), globals_hu.shape[1], -1)
        return ViewBatch(
            globals_hu=globals_hu,
            locals_hu=locals_hu,
            keep=keep.view(by_scan),
            masked=masked.view(by_scan),
            n_masked=n_masked,
            flipped=sent(large["flip"] > 0, hu.device).view(by_scan[:2]),
            spacing_mm_zyx=self.spacing_mm_zyx,
            clean_hu=clean_hu,
        )

    def draw(self, places: Sequence[tuple[int, int]]) -> tuple[Parameters, Parameters]:
        """All random parameters of the scans' global and of their local views, on the CPU."""
        rng = Draws([generator(self.seed, "views", *place) for place in places])
        crop, pose, augment = self.config.crop, self.config.pose, self.config.augment
        large = pose.draw(rng, crop.n_global) | augment.draw(rng, crop.n_global)
        large |= self.config.mask.draw(rng, crop.n_global, self.n_patches)
        small = pose.draw(rng, crop.n_local) | augment.draw(rng, crop.n_local)
        large |= crop.draw(rng, crop.n_global, crop.global_fraction)
        small |= crop.draw(rng, crop.n_local, crop.local_fraction)
        return _tensors(large), _tensors(small)

    def _globals(
        self, scans: Tensor, drawn: Parameters, shape_zyx: Shape
    ) -> tuple[Tensor, Tensor | None]:
        """Global views, and the same before augmentation where they are kept."""
        if self.config.crop.stretch:
            place = place_stretched(drawn, self.shape_zyx, self.spacing_mm_zyx)
        else:
            place = place_globals(drawn, shape_zyx, self.shape_zyx, self.spacing_mm_zyx)
        globals_hu = self._augmented(scans, place, drawn)
        if not self.config.keep_clean:
            return globals_hu, None
        clean_hu = cut(scans, place, (None,) * 3, self.config.path)
        return globals_hu, clean_hu.reshape(globals_hu.shape)

    def _locals(self, scans: Tensor, drawn: Parameters, n_local: int) -> Tensor:
        if n_local == 0:
            shape = (len(scans), 0, *self.local_shape)
            return scans.new_empty(shape, dtype=torch.float32)
        if self.config.crop.stretch:
            place = place_stretched(drawn, self.shape_zyx, self.spacing_mm_zyx)
            return self._augmented(scans, place, drawn)
        occupancy = patch_occupancy(scans, self.patch).cpu()
        place = place_locals(drawn, self.local_shape, occupancy, self.patch, self.spacing_mm_zyx)
        return self._augmented(scans, place, drawn)

    def _augmented(self, scans: Tensor, place: Placement, drawn: Parameters) -> Tensor:
        config = self.config
        spread = config.augment.spread(drawn, place, scans.device)
        views = cut(scans, place, spread, config.path)
        views = config.augment.apply(views, drawn, place, self._bank)
        return views.view(len(scans), -1, *place.shape_zyx)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Without torch's threads: views are thousands of small operations, and threads that wait for
    each other at every one of them cost many times the work where cores are shared.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _tensors(drawn: Drawn) -> Parameters:
    return {name: torch.from_numpy(values) for name, values in drawn.items()}
