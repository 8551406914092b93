"""Random numbers as pure functions of (seed, purpose, place): resume and replay come for free."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Purpose = Literal["order", "replacement", "views", "batch", "step"]
Drawn = dict[str, NDArray[np.float32]]
"""Drawn parameters by name, each [n ...] with one row per view."""


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator for one purpose at one place, e.g. (epoch, position) or (step,)."""
    return np.random.default_rng([seed, get_args(Purpose).index(purpose) + 1, *place])


def uniform(
    rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]
) -> NDArray[np.float32]:
    """U(low, high), float32."""
    return rng.uniform(low, high, shape).astype(np.float32)


def normal(
    rng: np.random.Generator, sd: float, shape: int | tuple[int, ...]
) -> NDArray[np.float32]:
    """N(0, sd), float32."""
    return (sd * rng.standard_normal(shape)).astype(np.float32)


def chance(rng: np.random.Generator, probability: float, n: int) -> NDArray[np.float32]:
    """1 with the given probability, else 0."""
    return (rng.random(n) < probability).astype(np.float32)


def touched(amount: Tensor) -> list[slice]:
    """Rows to change, one after another, of views of which those with 0 stay as they are.

    A CPU has each view in its cache and leaves the others alone; a GPU takes all in one launch.
    """
    if amount.device.type != "cpu":
        return [slice(None)]
    return [slice(i, i + 1) for i in amount.nonzero()[:, 0].tolist()]


def chosen(amount: Tensor) -> list[slice] | list[Tensor]:
    """As `touched` where the others are not to be computed at all: a GPU takes these by number."""
    if amount.device.type == "cpu":
        return touched(amount)
    rows = amount.nonzero()[:, 0]
    return [rows] if len(rows) else []
