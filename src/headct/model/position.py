"""Positions: rotary embedding of the token centre in millimetres, three axes.

A token's place is where it is in the head, in mm from the centre of the view, never its index in a
grid: the same weights then serve any voxel size and any field of view. The table of learned
positions is there for the architecture of FM-CT alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.errors import MismatchError

AXES = 3


def rope_periods_mm(n_pairs: int, shortest_mm: float, longest_mm: float) -> Tensor:
    """Wavelengths of the rotation pairs of one head, per axis.

    Each axis gets a third of the pairs, with periods geometric from shortest to longest; the rest
    have an infinite period, so they are not rotated.

    Args:
        n_pairs: half the width of one head.
        shortest_mm: period of the fastest pair, mm.
        longest_mm: period of the slowest pair, mm.

    Returns:
        [n_pairs, 3] float32, mm per turn along z, y, x; infinite where an axis turns no pair.
    """
    per_axis = n_pairs // AXES
    exponent = torch.linspace(0.0, 1.0, per_axis, dtype=torch.float64)
    periods = shortest_mm * (longest_mm / shortest_mm) ** exponent
    table = torch.full((n_pairs, AXES), math.inf, dtype=torch.float64)
    for axis in range(AXES):
        table[axis * per_axis : (axis + 1) * per_axis, axis] = periods
    return table.float()


def rotations(centre_mm: Tensor, periods_mm: Tensor) -> Tensor:
    """The rotation of every pair of every token, as unit complex numbers.

    Args:
        centre_mm: [b t 3] token centres (z, y, x) in mm from the centre of the view.
        periods_mm: [n_pairs, 3] from `rope_periods_mm`.

    Returns:
        [b t n_pairs] complex64.
    """
    angle = centre_mm.float() @ (2.0 * math.pi / periods_mm).T  # [b t p]
    return torch.polar(torch.ones_like(angle), angle)


def prefixed_rotations(centre_mm: Tensor, periods_mm: Tensor, n_prefix: int) -> Tensor:
    """Rotations of a sequence that starts with tokens without a place: [b r+t 1 1 e/2]."""
    rotation = rotations(centre_mm, periods_mm)
    unrotated = rotation.new_ones(rotation.shape[0], n_prefix, rotation.shape[-1])
    return torch.cat([unrotated, rotation], dim=1)[:, :, None, None]


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis; computed in float32, returned in the input's dtype.

    One complex product is 2-4x faster on a CPU than the usual cosine and sine halves.

    Args:
        vectors: [... e], e even; queries or keys.
        rotation: [... e/2] complex64, broadcast against `vectors`.
    """
    pairs = torch.view_as_complex(torch.unflatten(vectors.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(vectors.dtype)


def sines(centre_mm: Tensor, width: int, shortest_mm: float, longest_mm: float) -> Tensor:
    """Places in mm as sines and cosines, to be added to tokens.

    Args:
        centre_mm: [b t 3].
        width: of the tokens; a sixth of it are periods per axis, geometric from shortest to
            longest, and what is left over is zero.
        shortest_mm: shortest period, mm.
        longest_mm: longest period, mm.

    Returns:
        [b t width] float32.

    Source:
        Vaswani et al. 2017, section 3.5, in mm and along three axes.
    """
    n_periods = width // (2 * AXES)
    exponent = torch.linspace(0.0, 1.0, n_periods, device=centre_mm.device)
    periods_mm = shortest_mm * (longest_mm / shortest_mm) ** exponent
    angle = centre_mm.float()[..., None] * (2.0 * math.pi / periods_mm)  # [b t 3 p]
    waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return F.pad(waves, (0, width - waves.shape[-1]))


class PositionTable(nn.Module):
    """A learned vector for every patch of one grid; there are none for other grids.

    Args:
        grid_zyx: patches per axis.
        width: of the tokens.
    """

    def __init__(self, grid_zyx: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.grid_zyx = grid_zyx
        self.table = nn.Parameter(torch.empty(math.prod(grid_zyx), width))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, index: Tensor, grid_zyx: tuple[int, int, int]) -> Tensor:
        """Vectors [b t d] of the patches `index` [b t] of a view.

        Raises:
            MismatchError: the view has another grid than the table.
        """
        if grid_zyx != self.grid_zyx:
            raise MismatchError(
                f"positions were learned for {self.grid_zyx} patches, the view has {grid_zyx}",
                remedy="give volumes on the encoder's own grid",
            )
        return self.table[index]


def draw_position_scale(
    n: int, common_jitter: float, axis_jitter: float, device: torch.device
) -> Tensor:
    """Random stretch of the coordinates of n views: one factor for all axes times one per axis.

    Both are log-uniform in [1 / jitter, jitter]; drawn from torch's default generator.

    Returns:
        [n 1 3], to multiply coordinates with.
    """
    common = (2.0 * torch.rand(n, 1, 1, device=device) - 1.0) * math.log(common_jitter)
    per_axis = (2.0 * torch.rand(n, 1, AXES, device=device) - 1.0) * math.log(axis_jitter)
    return torch.exp(common + per_axis)
