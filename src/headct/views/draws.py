"""Random numbers as pure functions of (seed, purpose, place): resume and replay come for free.

What is drawn stays on the CPU, where deciding by it costs nothing; `sent` brings a device what it
computes with. A CPU makes one view after another, a GPU all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Purpose = Literal["order", "replacement", "views", "batch", "step"]
Drawn = dict[str, NDArray[np.float32]]
"""Drawn parameters by name, each [n ...] with one row per view."""
UNIFORM_AT_ONCE, NORMAL_AT_ONCE = 256, 64
"""Numbers that a generator is asked for at a time; they decide what is drawn."""

STAGED_BYTES = 2**16
"""CUDA copies more than this at once from pinned memory only."""


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator for one purpose at one place, e.g. (epoch, position) or (step,)."""
    return np.random.default_rng([seed, get_args(Purpose).index(purpose) + 1, *place])


class Draws:
    """Numbers of several scans at once, each scan's from its own generator.

    A call for [v ...] numbers a scan gives [b * v ...], those of one scan side by side: the same
    numbers for a scan in any batch. Asking b generators one by one for every parameter would take
    longer than a GPU takes for the views.

    Args:
        generators: b of them.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self._uniform = _Pool([g.random for g in generators], UNIFORM_AT_ONCE)
        self._normal = _Pool([g.standard_normal for g in generators], NORMAL_AT_ONCE)

    def random(self, *shape: int) -> NDArray[np.float32]:
        """U(0, 1): [b * v ...]."""
        return self._uniform.take(shape)

    def standard_normal(self, *shape: int) -> NDArray[np.float32]:
        """N(0, 1): [b * v ...]."""
        return self._normal.take(shape)


class _Pool:
    """The next numbers of several generators: [b n]."""

    def __init__(
        self, draw: Sequence[Callable[[int, type], NDArray[np.float32]]], at_once: int
    ) -> None:
        self.draw, self.at_once = draw, at_once
        self.left = np.empty((len(draw), 0), np.float32)

    def take(self, shape: Sequence[int]) -> NDArray[np.float32]:
        n = math.prod(shape)
        if (missing := n - self.left.shape[1]) > 0:
            drawn = [draw(max(missing, self.at_once), np.float32) for draw in self.draw]
            self.left = np.concatenate([self.left, np.stack(drawn)], axis=1)
        taken, self.left = self.left[:, :n], self.left[:, n:]
        return np.ascontiguousarray(taken).reshape(-1, *shape[1:])


def uniform(
    rng: Draws, low: float, high: float, shape: int | tuple[int, ...]
) -> NDArray[np.float32]:
    """U(low, high), float32; `shape` is that of one scan."""
    share = rng.random(*(shape if isinstance(shape, tuple) else (shape,)))
    return share * np.float32(high - low) + np.float32(low)


def normal(rng: Draws, sd: float, shape: int | tuple[int, ...]) -> NDArray[np.float32]:
    """N(0, sd), float32; `shape` is that of one scan."""
    return np.float32(sd) * rng.standard_normal(*(shape if isinstance(shape, tuple) else (shape,)))


def chance(rng: Draws, probability: float, n: int) -> NDArray[np.float32]:
    """1 with the given probability, else 0, for n views of each scan."""
    return (rng.random(n) < probability).astype(np.float32)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Drawn values on a device, without waiting for it."""
    if device.type == "cuda" and values.nbytes > STAGED_BYTES:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def column(values: Tensor) -> Tensor:
    """One value for each view: [n] -> [n 1 1 1]."""
    return values[:, None, None, None]


def one_by_one(device: torch.device) -> bool:
    """Whether views are made one after another there: a CPU has each in its cache."""
    return device.type == "cpu"


def touched(amount: Tensor, device: torch.device) -> list[slice]:
    """Rows to change, one after another, of views of which those with 0 stay as they are.

    A CPU leaves the others alone; a GPU takes all in one launch.
    """
    if not amount.any():
        return []
    if not one_by_one(device):
        return [slice(None)]
    return [slice(i, i + 1) for i in amount.nonzero()[:, 0].tolist()]


def chosen(amount: Tensor, device: torch.device) -> list[slice] | list[Tensor]:
    """As `touched` where the others are not to be computed at all: a GPU takes these by number.

    The numbers are on the CPU, as what was drawn; `numbers_on` finds their views.
    """
    if one_by_one(device):
        return touched(amount, device)
    rows = amount.nonzero()[:, 0]
    return [rows] if len(rows) else []


def numbers_on(device: torch.device, rows: slice | Tensor) -> slice | Tensor:
    """`chosen` rows as an index of views on a device."""
    return sent(rows, device) if isinstance(rows, Tensor) else rows
