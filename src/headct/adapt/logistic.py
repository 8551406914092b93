"""Logistic regression for many findings and strengths at once; unknown labels are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.store.label_table import UNKNOWN

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
MAX_STEPS = 300
TOLERANCE, TOLERANCE_FOLD = 1e-5, 1e-4
"""Change of a logit by a step at which a fit has arrived; folds only choose a strength."""
OUT_OF_THE_RACE = 0.2
SMALLEST_EIGENVALUE = 1e-6
"""Share of the largest; directions with less variance than that are dropped."""


@dataclass(frozen=True)
class Logistic:
    """Fitted weights [... d] and biases [...]; the leading axes were fitted at once."""

    weight: Floats
    bias: Floats

    def scores(self, x: Floats) -> Floats:
        """Probability that each finding is present: [n d] -> [n ...]."""
        logits = np.tensordot(x, self.weight, axes=(1, -1)) + self.bias
        return sigmoid(logits)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What a task keeps of it."""
        return {"weight": self.weight.astype(np.float32), "bias": self.bias.astype(np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float32]]) -> Logistic:
        """What `arrays` gave."""
        return cls(arrays["weight"].astype(np.float64), arrays["bias"].astype(np.float64))

    def as_kept(self) -> Logistic:
        """In the precision that a task keeps, so that it is evaluated as it is served."""
        return self.from_arrays(self.arrays())


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-logits)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def fit_logistic(x: Floats, y: NDArray[np.int8], c: Floats, evenness: float = 0.0) -> Logistic:
    """L2-regularised logistic regressions, one per strength and finding.

    Minimises  |w|^2 / (2 c) + sum over known labels of the log loss;  the bias is free. With
    `evenness` the norm is taken after principal directions of smaller spread s are stretched by
    (s_max / s)^evenness: 0 is the plain norm, 1 counts all directions alike.

    Args:
        x: features, [n d].
        y: 1, 0 or -1 (unknown), [n f].
        c: inverse strengths, [k].
        evenness: 0 to 1.

    Returns:
        weight [k f d], bias [k f].
    """
    return eigenbasis(x, evenness).fit(y, c)


@dataclass(frozen=True)
class Eigenbasis:
    """Features in their own principal directions, where many fits are cheap.

    One basis serves all findings, strengths and folds: there diag(s^2) / 4 + 1 / c bounds the
    Hessian of each from above (rows that a fold leaves out only lower it), so accelerated steps
    with that diagonal need no line search, and a step of all fits is two matrix products.

    Attributes:
        z: centred and stretched features, [n r].
        directions: from features to z, [d r].
        variance: squared sums of the columns of z, [r].
        centre: of the features, [d].

    Source:
        Boehning 1992, Ann. Inst. Stat. Math. 44:197 (the bound); Beck and Teboulle 2009,
        SIAM J. Imaging Sci. 2:183 (the acceleration); O'Donoghue and Candes 2015 (the restart).
    """

    z: Singles
    directions: Floats
    variance: Floats
    centre: Floats

    def fit(self, y: NDArray[np.int8], c: Floats) -> Logistic:
        """Fits on all rows, for features as they were given: weight [k f d], bias [k f]."""
        weight, bias = self._fit(self.z, y, c, TOLERANCE)
        full = self.directions @ weight
        k, f = len(c), y.shape[1]
        return Logistic(full.T.reshape(k, f, -1), (bias - self.centre @ full).reshape(k, f))

    def held_out_scores(self, y: NDArray[np.int8], c: Floats, held: NDArray[np.bool_]) -> Floats:
        """Scores [h k f] of the rows held out, by fits on all others."""
        weight, bias = self._fit(self.z[~held], y[~held], c, TOLERANCE_FOLD)
        scores = sigmoid(self.z[held] @ weight + bias)
        return scores.reshape(-1, len(c), y.shape[1])

    def _fit(
        self, z: Singles, y: NDArray[np.int8], c: Floats, tolerance: float
    ) -> tuple[Floats, Floats]:
        k, f = len(c), y.shape[1]
        known = np.tile(y != UNKNOWN, k)  # [n k*f]
        target = np.tile((y == 1).astype(np.float64), k)
        ridge = np.repeat(1 / c, f)  # [k*f]
        step = 1 / (self.variance[:, None] / 4 + ridge)  # [r k*f]
        return _minimise(z, target, known, ridge, step, 4 / len(self.z), tolerance)


def eigenbasis(x: Floats, evenness: float) -> Eigenbasis:
    """The basis of features [n d]; see `fit_logistic` for `evenness`."""
    centre = x.mean(0)
    x = x - centre
    n, d = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if n < d else x.T @ x)
    kept = values > SMALLEST_EIGENVALUE * max(float(values[-1]), 1e-30)
    values, vectors = values[kept], vectors[:, kept]
    basis = (x.T @ vectors) / np.sqrt(values) if n < d else vectors
    stretch = (values / values.max(initial=1e-30)) ** (-evenness / 2)
    basis = basis * stretch
    z = x.astype(np.float32) @ basis.astype(np.float32)
    return Eigenbasis(z, basis, values * stretch**2, centre)


def _minimise(
    z: Singles,
    target: Floats,
    known: NDArray[np.bool_],
    ridge: Floats,
    step: Floats,
    step_bias: float,
    tolerance: float,
) -> tuple[Floats, Floats]:
    """Weights [r m] and biases [m] of m fits; a fit that has arrived leaves the others to go on.

    The products are taken in single precision: their error is far below the tolerance.
    """
    spread = np.sqrt((z**2).mean(0))[:, None]
    share = ((target * known).sum(0) / known.sum(0).clip(1)).clip(1e-3, 0.999)
    weights, biases = np.zeros_like(step), np.log(share / (1 - share))
    at = np.arange(len(biases))  # the fits that go on
    wanted, pull, rate = (a.astype(np.float32) for a in (target, ridge, step))
    weight: Any = np.zeros_like(rate)
    bias: Any = biases.astype(np.float32)
    ahead_weight, ahead_bias, momentum = weight, bias, np.ones_like(bias)
    for _ in range(MAX_STEPS):
        residual = (sigmoid(z @ ahead_weight + ahead_bias) - wanted) * known
        move = rate * (z.T @ residual + pull * ahead_weight)
        move_bias = residual.sum(0) * np.float32(step_bias)
        new_weight, new_bias = ahead_weight - move, ahead_bias - move_bias
        # restart where the step points against the momentum: no overshoot, and no rate to tune
        uphill = ((new_weight - weight) * move / rate).sum(0) > 0
        momentum = np.where(uphill, np.float32(1), momentum)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        beta = (momentum - 1) / following
        ahead_weight = new_weight + beta * (new_weight - weight)
        ahead_bias = new_bias + beta * (new_bias - bias)
        weight, bias, momentum = new_weight, new_bias, following
        weights[:, at], biases[at] = weight, bias
        on = _change(spread, move, move_bias) >= tolerance
        if not on.any():
            break
        if not on.all():
            at, known, wanted = at[on], known[:, on], wanted[:, on]
            weight, ahead_weight, rate = weight[:, on], ahead_weight[:, on], rate[:, on]
            bias, ahead_bias, momentum, pull = bias[on], ahead_bias[on], momentum[on], pull[on]
    return weights, biases


def _change(spread: Singles, move: Singles, move_bias: Singles) -> Singles:
    """Root mean square change of a logit by the last step, per fit."""
    return np.asarray(np.sqrt(((spread * move) ** 2).sum(0) + move_bias**2))


def log_loss(scores: Floats, y: NDArray[np.int8]) -> Floats:
    """Mean log loss over known labels: scores [n k f], y [n f] -> [k f]."""
    clipped = scores.clip(1e-7, 1 - 1e-7)
    known = (y != UNKNOWN)[:, None]
    losses = -np.where((y == 1)[:, None], np.log(clipped), np.log1p(-clipped))
    return np.asarray((losses * known).sum(0) / known.sum(0).clip(1))


def draw_folds(
    group: NDArray[np.object_], y: NDArray[np.int8], n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Fold of each scan; patients stay whole, positives of rare findings are dealt out first.

    Args:
        group: patient of each scan, [n].
        y: labels, [n f].
        n_folds: how many.
        seed: of the order.
    """
    names, index = np.unique(group.astype(str), return_inverse=True)
    rng = np.random.default_rng([seed, n_folds])
    positive = np.zeros((len(names), y.shape[1]), dtype=bool)
    np.logical_or.at(positive, index, y == 1)
    fold = np.full(len(names), -1, dtype=np.int64)
    dealt = 0
    for column in [*np.argsort(positive.sum(0), kind="stable"), None]:
        wanted = fold < 0 if column is None else (fold < 0) & positive[:, column]
        members = rng.permutation(np.flatnonzero(wanted))
        fold[members] = (dealt + np.arange(len(members))) % n_folds
        dealt += len(members)
    return np.asarray(fold[index])


def cross_validated_loss(
    basis: Eigenbasis, y: NDArray[np.int8], c: Floats, fold: NDArray[np.int64]
) -> Floats:
    """Mean log loss of held-out rows, [k f].

    A strength that lost OUT_OF_THE_RACE more than the best on one fold is not tried on the next
    ones, and has an infinite loss: weak penalties cost the most steps and are the first to lose.
    """
    scores = np.full((len(y), len(c), y.shape[1]), np.nan)
    on = np.arange(len(c))
    for number in np.unique(fold):
        held = fold == number
        found = basis.held_out_scores(y, c[on], held)
        scores[np.ix_(held, on)] = found
        losses = log_loss(found, y[held]).mean(1)
        on = on[losses <= (1 + OUT_OF_THE_RACE) * losses.min()]
    losses = np.full((len(c), y.shape[1]), np.inf)
    losses[on] = log_loss(scores[:, on], y)
    return losses
