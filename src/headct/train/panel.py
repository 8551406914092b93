"""Pictures of what a masked-reconstruction run sees and guesses: input, mask, reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headct.atomic import replacing
from headct.model.tokens import gather_patches, grid_shape, to_channels, window_tensors
from headct.objective.joint import JointObjective
from headct.objective.mae import patch_deviation, patch_mean
from headct.train.loop import StepRecord, TrainState
from headct.views.batch import ViewBatch
from headct.volume.volume import Zyx

GREY = 0.0
"""Value of a removed patch in the picture; windows run from -1 to 1."""


class PanelWriter:
    """Hook: panels/step-NNNNNNNN.png every so many steps, always of the same views.

    Args:
        folder: RUN/panels.
        objective: gives what is trained, on the rank that draws; every rank asks for it.
        views: a few scans.
        every: steps between pictures; 0 makes none.
    """

    def __init__(
        self,
        folder: Path,
        objective: Callable[[], JointObjective | None],
        views: ViewBatch,
        every: int,
    ) -> None:
        self.folder, self.objective, self.views, self.every = folder, objective, views, every

    def __call__(self, _: TrainState, record: StepRecord) -> None:
        """Draw where it is time; without a decoder there is nothing to draw."""
        if self.every == 0 or record.step % self.every:
            return
        objective = self.objective()
        if objective is not None and objective.decoder is not None:
            volumes = reconstruct(objective, self.views)
            path = self.folder / f"step-{record.step:08d}.png"
            write_panel(path, volumes, self.views.spacing_mm_zyx)


@torch.no_grad()
def reconstruct(objective: JointObjective, views: ViewBatch) -> NDArray[np.float32]:
    """First window channel of the first global view of each scan, three times.

    Patches that the encoder does not compute (air) stay as they are in all three.

    Returns:
        [3 b z y x] in [-1, 1]: input, input without the removed patches, those put back as the
        decoder guesses them.
    """
    assert objective.decoder is not None
    was_training = objective.training
    objective.eval()
    hu, keep, masked = views.globals_hu[:, 0], views.keep[:, 0], views.masked[:, 0]
    config = objective.encoder_config
    patch, n_windows = config.patch_voxels_zyx, len(config.windows)
    visible, asked = (keep[chosen].view(len(keep), -1) for chosen in (~masked, masked))
    tokens = objective.student.forward_hu(hu, views.spacing_mm_zyx, visible)
    asked_mm = objective.student.centres_mm(asked, hu.shape[1:], views.spacing_mm_zyx)
    hidden, _ = objective.decoder(tokens, asked_mm)
    guessed = objective.decoder.to_voxels(hidden).unflatten(-1, (n_windows, -1)).float()
    levels, widths = window_tensors(config.windows, hu.device)
    if objective.config.mae.normalised:  # level and contrast of the patch are then not guessed
        true = to_channels(gather_patches(hu, patch, asked).float(), levels, widths)
        guessed = guessed * patch_deviation(true) + patch_mean(true)
    guessed = guessed[:, :, 0]
    given = to_channels(gather_patches(hu, patch).float(), levels[:1], widths[:1])[:, :, 0]
    at = asked[..., None].expand_as(guessed)
    pictures = (given, given.scatter(1, at, GREY), given.scatter(1, at, guessed))
    objective.train(was_training)
    volumes = [put_together(picture, hu.shape[1:], patch) for picture in pictures]
    return torch.stack(volumes).clamp(-1, 1).cpu().numpy()


def put_together(patches: Tensor, shape_zyx: torch.Size, patch_zyx: tuple[int, int, int]) -> Tensor:
    """All patches [b t v] of volumes -> the volumes [b z y x]."""
    grid = grid_shape(shape_zyx, patch_zyx)
    blocks = patches.view(-1, *grid, *patch_zyx).permute(0, 1, 4, 2, 5, 3, 6)
    return blocks.reshape(-1, *shape_zyx)


def write_panel(path: Path, volumes: NDArray[np.float32], spacing_mm_zyx: Zyx) -> None:
    """Middle axial slices as a PNG: a row per scan; anterior up, patient's right on the left."""
    from matplotlib.image import imsave

    axial = volumes[:, :, volumes.shape[2] // 2, ::-1, ::-1]  # [3 b y x]
    rows = [np.concatenate(list(axial[:, scan]), axis=1) for scan in range(axial.shape[1])]
    _, *in_plane = spacing_mm_zyx
    high, wide = (round(3 * mm / min(in_plane)) for mm in in_plane)
    picture = np.concatenate(rows).repeat(high, axis=0).repeat(wide, axis=1)
    with replacing(path) as aside:
        imsave(aside, picture, cmap="gray", vmin=-1, vmax=1, format="png")
