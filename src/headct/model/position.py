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
    """The rotation of every pair of every token, as cosine and sine.

    Sums of products, not a matrix product: autocast would round the angles to bfloat16, which at
    100 mm is an error of a tenth of a radian.

    Args:
        centre_mm: [b t 3] token centres (z, y, x) in mm from the centre of the view.
        periods_mm: [n_pairs, 3] from `rope_periods_mm`.

    Returns:
        [b t n_pairs 2] float32.
    """
    turns = centre_mm.float()[..., None, :] / periods_mm  # [b t p 3]
    angle = 2.0 * math.pi * turns.sum(dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def prefixed_rotations(centre_mm: Tensor, periods_mm: Tensor, n_prefix: int) -> Tensor:
    """Rotations of a sequence that starts with tokens without a place: [b r+t 1 1 e/2 2]."""
    rotation = rotations(F.pad(centre_mm, (0, 0, n_prefix, 0)), periods_mm)
    return rotation[:, :, None, None]


def rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis; computed in float32, returned in the input's dtype.

    Args:
        vectors: [... e], e even; queries or keys.
        rotation: [... e/2 2] from `rotations`, broadcast against `vectors`.
    """
    return turned(vectors, rotation).to(vectors.dtype)


def turned(vectors: Tensor, rotation: Tensor) -> Tensor:
    """`rotate` as it is computed, in float32.

    On a CPU one complex product is 2-4x faster than the usual cosine and sine halves; elsewhere
    compilers fuse real products, and know no complex ones.
    """
    widened = vectors.to(rotation.dtype, memory_format=torch.contiguous_format).contiguous()
    pairs = torch.unflatten(widened, -1, (-1, 2))
    is_eager_cpu = vectors.device.type == "cpu" and not torch.compiler.is_compiling()
    turn = turn_complex if is_eager_cpu else turn_real
    return turn(pairs, rotation).flatten(-2)


def turn_complex(pairs: Tensor, rotation: Tensor) -> Tensor:
    """Pairs [... 2] times rotations [... 2], both read as complex numbers."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))


def turn_real(pairs: Tensor, rotation: Tensor) -> Tensor:
    """The same as `turn_complex`, written out."""
    (a, b), (cosine, sine) = pairs.unbind(-1), rotation.unbind(-1)
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1)


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
