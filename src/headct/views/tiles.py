"""Large views in bfloat16, on a CPU that multiplies tiles of it (AMX).

A whole view takes half to a third of its time in float32; one that looks at a small part of its
scan gains nothing. Brain is rounded by 0.1 HU in the mean, where scans are whole HU, and bone by 1
to 5 (decision 0054).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from headct.volume.volume import AIR_HU

LEAST_VOXELS = 2**18
"""Of a view; smaller ones are no faster."""


@cache
def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def pay(shape_zyx: Sequence[int]) -> bool:
    """Whether views of this shape are cut in tiles here."""
    return has_tiles() and math.prod(shape_zyx) >= LEAST_VOXELS


def rounded(operators: Tensor) -> Tensor:
    """[n out in] as bfloat16 has them, with the sums of rows within the scan kept to 1e-3.

    Each row's largest weights take, one after another, what rounding has left of the sum, so that
    air does not ripple.
    """
    sums = operators.sum(-1, keepdim=True)
    near, sizes = operators.bfloat16().float(), operators.abs()
    for _ in range(3):
        largest = torch.from_numpy(sizes.numpy().argmax(-1, keepdims=True))  # faster than torch's
        lack = (sums - near.sum(-1, keepdim=True)) * (sizes.gather(-1, largest) > 0)
        mended = (near.gather(-1, largest) + lack).bfloat16().float()
        near.scatter_(-1, largest, mended)
        sizes.scatter_(-1, largest, 0.0)
    return near


def cut_each(scans: Tensor, operators: tuple[Tensor, ...], views: Tensor) -> None:
    """One matrix per axis, and air where a row of it looks beyond the scan.

    HU as they are: as HU above air, all would be far from 0 and rounded more. Each time the whole
    scan, so that few shapes occur: what multiplies tiles is compiled for each of them, once.

    Args:
        scans: [b z y x] HU.
        operators: [n out in] of every axis; n = b v views, those of one scan side by side.
        views: [n z' y' x'] float32, written.
    """
    near = [rounded(operator) for operator in operators]
    air = [AIR_HU * (1.0 - operator.sum(-1)) for operator in near]  # [n out], what lies out there
    ends = [_ends(beyond) for beyond in air]
    near = [operator.bfloat16() for operator in near]
    views_each = len(views) // len(scans)
    # what was written a moment ago is still in the cache: few buffers, again and again
    whole = torch.empty(scans.shape[1:], dtype=torch.bfloat16)
    buffers = whole.new_empty(2, math.prod(map(max, whole.shape, views.shape[1:])))
    for n, view in enumerate(views):
        if n % views_each == 0:
            whole.copy_(scans[n // views_each])
        part = whole
        for axis in (2, 1, 0):  # the last axis is replaced, and becomes the first
            edges = (len(near[axis][n]), *part.shape[:2])
            product = buffers[axis % 2, : math.prod(edges)].view(edges[0], -1)
            lines = part.view(-1, part.shape[2])
            part = torch.mm(near[axis][n], lines.mT, out=product).view(edges)
            _add_air(part, air[axis][n], ends[axis][n])
        view.copy_(part)


def _ends(air: Tensor) -> list[list[int]]:
    """How many voxels at either end of n lines [n out] air is to be added to."""
    wanted = air.abs().numpy() > 2.0
    half = wanted.shape[1] // 2
    inwards = wanted[:, :half], wanted[:, half:][:, ::-1]
    n_each = [(end * np.arange(1, end.shape[1] + 1)).max(1, initial=0) for end in inwards]
    counts: list[list[int]] = np.stack(n_each, axis=1).tolist()
    return counts


def _add_air(part: Tensor, air: Tensor, ends: Sequence[int]) -> None:
    """Add `air` [z] to [z y x], where there is any."""
    for first, n in zip((0, len(air) - ends[1]), ends, strict=True):
        if n:
            part[first : first + n] += air[first : first + n, None, None].bfloat16()
