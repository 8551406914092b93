"""Statistics of the whole batch where several ranks hold a part of it each."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gathered(rows: Tensor) -> Tensor:
    """The rows [n ...] of all ranks, in rank order, with gradients back to each rank's own rows.

    Every rank must bring the same number of rows. The gradient is that of the sum of all ranks'
    losses, so that averaging it over ranks gives what one rank with the whole batch would get.
    """
    if not _several():
        return rows
    return torch.cat(all_gather(rows.contiguous()))  # type: ignore[no-untyped-call]


def own_rows(n: int) -> slice:
    """Where this rank's n rows are in what `gathered` gives."""
    first = n * dist.get_rank() if _several() else 0
    return slice(first, first + n)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a number without gradient over all ranks."""
    if not _several():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
