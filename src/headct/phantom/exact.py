"""Arithmetic whose float32 results are the same to the bit on every machine.

A matrix product sums in an order that depends on the processor, and the last bit of a float32
exponential or sine on its vector instructions. Sums of few terms in a fixed order do not, nor do
functions that are computed in float64 and rounded once; sums, products, quotients and square roots
of numpy are exact as they are.
"""

from __future__ import annotations

import numpy as np

from headct.phantom.fields import Floats


def exp(power: Floats) -> Floats:
    """The exponential of each."""
    return np.exp(power, dtype=np.float64).astype(np.float32)


def cos(angle_rad: Floats) -> Floats:
    """Cosine of each angle."""
    return np.cos(angle_rad, dtype=np.float64).astype(np.float32)


def arctan2(y: Floats, x: Floats) -> Floats:
    """Angle of each point from the x axis, in radians."""
    return np.arctan2(y, x, dtype=np.float64).astype(np.float32)


def power(base: Floats, exponent: float) -> Floats:
    """Each to a power."""
    return np.power(base, exponent, dtype=np.float64).astype(np.float32)


def weighted(weights: Floats, values: Floats) -> Floats:
    """The matrix product of sparse weights [n m] and values [m ...]: [n ...]."""
    sums = np.zeros((len(weights), *values.shape[1:]), np.float32)
    part = np.empty(values.shape[1:], np.float32)
    for row, total in zip(weights, sums, strict=True):
        for column in np.flatnonzero(row):
            total += np.multiply(values[column], row[column], out=part)
    return sums
