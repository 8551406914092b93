"""One banded matrix an axis, put on a volume part by part so that each part stays in the cache.

Slices come first where they become fewer, else the plane of each slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Block = tuple[slice, slice, Float]
Prepare = Callable[[Float], None]

FEW_ROWS, SOME_ROWS, MANY_ROWS = 4, 8, 16
"""Target rows of one product, whose band of the operator is dense: fewer where the products are
wide and waste counts, more where they are narrow and calls count."""


class Operator:
    """A 1D operator, cut into blocks of rows over the inputs that they use."""

    def __init__(self, matrix: NDArray[Any]) -> None:
        """Take a matrix [n_out n_in]; zeros outside its band cost nothing."""
        self.matrix = np.asarray(matrix, np.float32)
        self.n_out, self.n_in = self.matrix.shape
        self._blocks: dict[int, list[Block]] = {}
        self._flipped: Operator | None = None

    def blocks(self, n_rows: int) -> list[Block]:
        """Rows, inputs and dense weights of each block of `n_rows`."""
        if n_rows not in self._blocks:
            self._blocks[n_rows] = [
                self._block(slice(first, min(first + n_rows, self.n_out)))
                for first in range(0, self.n_out, n_rows)
            ]
        return self._blocks[n_rows]

    def _block(self, rows: slice) -> Block:
        used = np.flatnonzero(self.matrix[rows].any(axis=0))
        inputs = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
        return rows, inputs, np.ascontiguousarray(self.matrix[rows, inputs])

    def flipped(self) -> Operator:
        """The same for inputs that come in the opposite order."""
        if self._flipped is None:
            self._flipped = Operator(self.matrix[:, ::-1])
        return self._flipped


def apply_operators(
    hu: NDArray[Any],
    operators: Sequence[Operator],
    *,
    prepare: Prepare | None = None,
    wanted: NDArray[np.bool_] | None = None,
) -> Float:
    """All three operators on a volume.

    Args:
        hu: [z y x], a view in any memory order.
        operators: along z, y and x.
        prepare: changes the values in place before the operators see them; it is given parts of
            the volume, some of them twice.
        wanted: [z' y' x'], False where the outcome does not matter; blocks without any True may
            be left at zero.

    Returns:
        float32 [z' y' x'].
    """
    z, y, x = operators
    if hu.strides[0] < 0:
        hu, z = hu[::-1], z.flipped()
    if hu.strides[1] < 0:
        hu, y = hu[:, ::-1], y.flipped()
    if hu.strides[2] < 0:  # backwards is slow to read
        hu, x = hu[:, :, ::-1], x.flipped()
    if z.n_out < z.n_in:
        return _slices_first(hu, z, y, x, prepare, wanted)
    return _planes_first(hu, z, y, x, prepare)


def _slices_first(
    hu: NDArray[Any],
    z: Operator,
    y: Operator,
    x: Operator,
    prepare: Prepare | None,
    wanted: NDArray[np.bool_] | None,
) -> Float:
    """Blocks of target rows: their native rows along z, some slices at a time, then y, then x."""
    out = np.zeros((z.n_out, y.n_out, x.n_out), np.float32)
    deep, high, wide = z.blocks(FEW_ROWS), y.blocks(SOME_ROWS), x.blocks(MANY_ROWS)
    n_rows = _most_inputs(high)
    native = np.empty(_most_inputs(deep) * n_rows * x.n_in, np.float32)
    fewer = np.empty(z.n_out * n_rows * x.n_in, np.float32)
    for rows, lines, weights in high:
        if wanted is not None:
            shown = wanted[:, rows]
            deep = _meeting(z.blocks(FEW_ROWS), np.any(shown, axis=(1, 2)))
            wide = _meeting(x.blocks(MANY_ROWS), np.any(shown, axis=(0, 1)))
            if not deep:
                continue
        columns = slice(min(i.start for _, i, _ in wide), max(i.stop for _, i, _ in wide))
        shape = (-1, lines.stop - lines.start, columns.stop - columns.start)
        n = shape[1] * shape[2]
        depth = slice(deep[0][0].start, deep[-1][0].stop)
        slices = fewer[: n * (depth.stop - depth.start)].reshape(-1, n)
        for targets, inputs, depth_weights in deep:
            part = native[: n * (inputs.stop - inputs.start)].reshape(shape)
            np.copyto(part, hu[inputs, lines, columns])
            if prepare is not None:
                prepare(part)
            first = targets.start - depth.start
            np.matmul(
                depth_weights, part.reshape(-1, n), out=slices[first : first + len(depth_weights)]
            )
        _along(wide, np.matmul(weights, slices.reshape(shape)), out[depth, rows], columns.start)
    return out


def _most_inputs(blocks: list[Block]) -> int:
    return max(len(weights[0]) for _, _, weights in blocks)


def _meeting(blocks: list[Block], wanted: Any) -> list[Block]:
    """From the first to the last block in which something is wanted."""
    meets = np.flatnonzero([wanted[rows].any() for rows, _, _ in blocks])
    return blocks[int(meets[0]) : int(meets[-1]) + 1] if meets.size else []


def _planes_first(
    hu: NDArray[Any], z: Operator, y: Operator, x: Operator, prepare: Prepare | None
) -> Float:
    """The plane of each native slice, then all slices."""
    planes = np.empty((z.n_in, y.n_out, x.n_out), np.float32)
    native, short = (np.empty((n, x.n_in), np.float32) for n in (y.n_in, y.n_out))
    for plane, out in zip(hu, planes, strict=True):
        np.copyto(native, plane)
        if prepare is not None:
            prepare(native)
        _down(y.blocks(MANY_ROWS), native, short)
        _along(x.blocks(MANY_ROWS), short, out)
    slices = np.empty((z.n_out, y.n_out, x.n_out), np.float32)
    _down(z.blocks(SOME_ROWS), planes.reshape(z.n_in, -1), slices.reshape(z.n_out, -1))
    return slices


def _down(blocks: list[Block], rows: Float, out: Float) -> None:
    """[n_in m] -> [n_out m]."""
    for targets, inputs, weights in blocks:
        np.matmul(weights, rows[inputs], out=out[targets])


def _along(blocks: list[Block], columns: Float, out: Float, first: int = 0) -> None:
    """[... n_in] -> [... n_out], where the columns that are given start at `first`."""
    flat = columns.reshape(-1, columns.shape[-1])
    for targets, inputs, weights in blocks:
        found = flat[:, inputs.start - first : inputs.stop - first] @ weights.T
        out[..., targets] = found.reshape(*columns.shape[:-1], -1)
