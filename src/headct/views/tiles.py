"""Large views in bfloat16, on a CPU that multiplies tiles of it (AMX).

A whole view takes half to a third of its time in float32; one that looks at a small part of its
scan gains nothing. Brain is rounded by 0.1 HU in the mean, where scans are whole HU, and bone by 1
to 5 (decision 0054).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from headct.volume.volume import AIR_HU

LEAST_VOXELS = 2**18
"""Of a view; smaller ones are no faster."""


@cache
def has_tiles() -> bool:
    """Whether this CPU multiplies tiles of bfloat16."""
    return bool(torch.cpu._is_amx_tile_supported())


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
        largest = sizes.max(-1, keepdim=True).indices
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
    beyond = [1.0 - operator.sum(-1) for operator in near]  # [n out], weight of the air out there
    near = [operator.bfloat16() for operator in near]
    views_each = len(views) // len(scans)
    for i, view in enumerate(views):
        if i % views_each == 0:
            whole = scans[i // views_each].bfloat16()
        part = whole
        for axis in (2, 1, 0):  # the last axis is replaced, and becomes the first
            edges = (len(near[axis][i]), *part.shape[:2])
            part = near[axis][i] @ part.reshape(-1, part.shape[2]).mT
            rows = (beyond[axis][i].abs() > 2e-3).nonzero()[:, 0]
            if len(rows):
                part[rows] += (AIR_HU * beyond[axis][i, rows, None]).bfloat16()
            part = part.view(edges)
        view.copy_(part)
