"""What `exact` computes is what numpy does, but for the last bits."""

from __future__ import annotations

import numpy as np

from headct.phantom.exact import arctan2, cos, exp, power, weighted
from headct.phantom.fields import lattice_nodes, upsampling

RNG = np.random.default_rng(0)


def test_weighted_is_the_matrix_product() -> None:
    weights = upsampling(50, 7)
    values = RNG.normal(0, 50, (lattice_nodes(50, 7), 4, 3)).astype(np.float32)
    found = weighted(weights, values)
    assert found.dtype == np.float32
    assert found.shape == (50, 4, 3)
    expected = np.tensordot(weights.astype(float), values.astype(float), 1)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert not weighted(np.zeros((2, 5), np.float32), values[:5]).any()


def test_functions_are_rounded_once() -> None:
    x = RNG.uniform(0.1, 9, 1000).astype(np.float32)
    wide = x.astype(float)
    for found, expected in (
        (exp(x), np.exp(wide)),
        (cos(x), np.cos(wide)),
        (power(x, -0.35), wide**-0.35),
        (arctan2(x, x[::-1]), np.arctan2(wide, wide[::-1])),
    ):
        assert found.dtype == np.float32
        assert np.all(np.abs(found - expected) <= 0.5000001 * np.spacing(np.abs(found)))
