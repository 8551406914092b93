"""How the head lies in the scanner, found in the image: mid-sagittal plane, orbito-meatal line.

Two reference heads (the average of real adults, the phantom's mean) carry the frame. An affine map
of the better one onto the scan is found by Gauss-Newton steps, coarse, then fine; its rotation
alone is the pose, size and shape of the head are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.volume.head import Head
from headct.volume.volume import AIR_HU

Float = NDArray[np.float64]

REFERENCES = Path(__file__).with_name("reference_heads.npz")
LOW_HU, HIGH_HU = -400.0, 500.0
"""What is compared: air, tissue, bone."""
COARSE_MM, FINE_MM = 8.0, 3.0
"""Sd of the blur at the two levels."""
COARSE_STEPS, FINE_STEPS = 15, 12
STARTS_DEG = ((-36.0, -18.0, 0.0, 18.0, 36.0), (-25.0, 0.0, 25.0))
"""Nod and turn of the head that the coarse level may start from."""
VERTEX_MM = 83.0
"""Of the reference heads, over their origin."""
DIFFERENCE_HU = 150.0
"""Differences above this count less and less: pathology, hair pins, swelling."""
SHEAR_RIDGE = 0.1
LEVER_MM = 80.0
"""Brings entries of the matrix to the size of the shift."""
LEAST_MATCH, LEAST_COVERED, LEAST_SYMMETRY = 0.75, 0.75, 0.7
MOST_TURNED_DEG = 50.0
SIZES = (0.7, 1.3)
"""Of the head along each axis, relative to the reference."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the head lies.

    Attributes:
        to_aligned: 4x4, world mm (S, A, R, 1) -> mm in the head's own frame; rigid.
        match: correlation of scan and reference.
        covered: share of the reference that lies in the scan.
        symmetry: correlation of the head with its mirror image.
        sizes: of the head relative to the reference, along S, A, R.
        turned_deg: angle between the scanner's frame and the head's.
        reference: which one fitted better.
    """

    to_aligned: Float
    match: float
    covered: float
    symmetry: float
    sizes: tuple[float, float, float]
    turned_deg: float
    reference: str

    @property
    def sure(self) -> bool:
        """Whether the pose can be trusted: whole head, like a head, symmetric, not upside down."""
        return (
            self.match >= LEAST_MATCH
            and self.covered >= LEAST_COVERED
            and self.symmetry >= LEAST_SYMMETRY
            and self.turned_deg <= MOST_TURNED_DEG
            and all(SIZES[0] <= size <= SIZES[1] for size in self.sizes)
        )


@dataclass(frozen=True, eq=False)
class _Reference:
    """Points of a reference head: place in its frame, value and gradient per mm."""

    points_mm: Float
    values: Float
    gradients: Float


@dataclass(frozen=True, eq=False)
class _Fit:
    """Frame -> world: `matrix @ point + shift`, and how well the scan agrees there."""

    matrix: Float
    shift: Float
    match: float
    covered: float

    @property
    def rotation(self) -> Float:
        u, _, v = np.linalg.svd(self.matrix)
        return np.asarray(u @ v)


def find_pose(head: Head) -> Pose:
    """The head's pose in the scanner; look at `sure` before it is used.

    Args:
        head: from `find_head`.
    """
    coarse, image = _image(head, COARSE_MM), _image(head, FINE_MM)
    fits = {}
    for candidate in _names():
        reference = _reference(candidate, FINE_MM, 2)
        start = _coarse_fit(coarse, head, candidate)
        fits[candidate] = _fitted(image, head.affine_zyx, reference, start, FINE_STEPS)
    name = max(fits, key=lambda candidate: fits[candidate].match)
    fit, reference = fits[name], _reference(name, FINE_MM, 2)
    rotation = fit.rotation
    to_aligned = np.eye(4)
    to_aligned[:3, :3] = rotation.T
    to_aligned[:3, 3] = -rotation.T @ fit.shift
    sizes = np.diag(rotation.T @ fit.matrix)
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    return Pose(
        to_aligned=to_aligned,
        match=fit.match,
        covered=fit.covered,
        symmetry=_symmetry(image, head.affine_zyx, reference, fit),
        sizes=(float(sizes[0]), float(sizes[1]), float(sizes[2])),
        turned_deg=float(np.rad2deg(np.arccos(cosine))),
        reference=name,
    )


def in_own_frame(head: Head, pose: Pose, margin_mm: float) -> Head:
    """The head with its place for a grid in its own frame; masks and affine stay as they are.

    The grid's middle is the reference's, whose vertex is moved along with the head's height, so
    that swellings, hair pins and cut scans do not move the grid; it is raised where it would cut
    something off.
    """
    to_aligned = pose.to_aligned @ head.affine_zyx
    surface = head.mask & ~ndimage.binary_erosion(head.mask)
    top_mm = float((np.argwhere(surface) @ to_aligned[0, :3]).max() + to_aligned[0, 3])
    vertex_mm = max(pose.sizes[0] * VERTEX_MM, top_mm - margin_mm)
    return replace(head, vertex_mm=vertex_mm, centre_mm_yx=(0.0, 0.0))


def _cleared(head: Head) -> NDArray[np.float32]:
    return np.where(head.surround, head.hu, AIR_HU).astype(np.float32)


def _image(head: Head, blur_mm: float) -> NDArray[np.float32]:
    clipped = _cleared(head).clip(LOW_HU, HIGH_HU)
    return np.asarray(
        ndimage.gaussian_filter(clipped, blur_mm / head.spacing_mm_zyx, mode="nearest", truncate=3)
    )


@lru_cache(maxsize=1)
def _stored() -> dict[str, NDArray[np.generic]]:
    with np.load(REFERENCES, allow_pickle=False) as arrays:
        return dict(arrays)


def _names() -> list[str]:
    return sorted(key.removesuffix("_share") for key in _stored() if key.endswith("_share"))


@lru_cache(maxsize=8)
def _reference(name: str, blur_mm: float, stride: int) -> _Reference:
    """A reference head at a blur, thinned out to a body-centred lattice of points."""
    share, affine = _stored()[f"{name}_share"], np.asarray(_stored()[f"{name}_affine"], float)
    hu = share.astype(np.float64) * ((HIGH_HU - LOW_HU) / 255) + LOW_HU
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    hu = ndimage.gaussian_filter(hu, blur_mm / spacing_mm, mode="nearest")
    near = ndimage.maximum_filter(hu > LOW_HU / 2, 3)
    index = np.indices(hu.shape)
    near &= (index % stride == index[:1] % stride).all(axis=0)
    per_voxel = np.stack(list(np.gradient(hu)), axis=-1)[near]
    return _Reference(
        points_mm=np.argwhere(near) @ affine[:3, :3].T + affine[:3, 3],
        values=hu[near],
        gradients=per_voxel @ np.linalg.inv(affine[:3, :3]),
    )


def _coarse_fit(image: NDArray[np.float32], head: Head, name: str) -> _Fit:
    reference = _reference(name, COARSE_MM, 3)
    top = np.array([head.vertex_mm, *head.centre_mm_yx])
    starts = []
    for nod, turn in product(*STARTS_DEG):
        rotation = _rotation(nod, turn)
        # the top of the head stays at the vertex
        starts.append((rotation, top - [VERTEX_MM, 0.0, 0.0]))
    fits = [_seen(image, head.affine_zyx, reference, *start) for start in starts]
    best = max(fits, key=lambda fit: fit.match)
    return _fitted(image, head.affine_zyx, reference, best, COARSE_STEPS)


def _rotation(nod_deg: float, turn_deg: float) -> Float:
    a, b = np.deg2rad([nod_deg, turn_deg])
    nod = [[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]]
    turn = [[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]]
    return np.array(turn) @ np.array(nod)


def _sampled(image: NDArray[np.float32], affine: Float, world_mm: Float) -> Float:
    """Values of the scan at points; NaN outside."""
    inverse = np.linalg.inv(affine)
    index = (world_mm @ inverse[:3, :3].T + inverse[:3, 3]).T
    return np.asarray(ndimage.map_coordinates(image, index, np.float64, 1, cval=np.nan))


def _seen(
    image: NDArray[np.float32], affine: Float, reference: _Reference, matrix: Float, shift: Float
) -> _Fit:
    found = _sampled(image, affine, reference.points_mm @ matrix.T + shift)
    inside = np.isfinite(found)
    if inside.sum() < inside.size / 10:
        return _Fit(matrix, shift, -1.0, float(inside.mean()))
    match = float(np.corrcoef(found[inside], reference.values[inside])[0, 1])
    return _Fit(matrix, shift, match if np.isfinite(match) else -1.0, float(inside.mean()))


def _fitted(
    image: NDArray[np.float32], affine: Float, reference: _Reference, fit: _Fit, steps: int
) -> _Fit:
    """Gauss-Newton steps on the robust squared difference over the twelve numbers of the map."""
    matrix, shift = fit.matrix.copy(), fit.shift.copy()
    for _ in range(steps):
        found = _sampled(image, affine, reference.points_mm @ matrix.T + shift)
        inside = np.isfinite(found)
        if inside.sum() < inside.size / 10:
            break
        off = found[inside] - reference.values[inside]
        slope = reference.gradients[inside] @ np.linalg.inv(matrix)
        place = reference.points_mm[inside] / LEVER_MM
        jacobian = np.hstack([slope * place[:, [axis]] for axis in range(3)] + [slope])
        weighted = jacobian / np.maximum(1.0, np.abs(off) / DIFFERENCE_HU)[:, None]
        normal, right = weighted.T @ jacobian, -(weighted.T @ off)
        _against_shear(normal, right, matrix)
        normal[np.diag_indices(12)] *= 1.001
        step = np.linalg.solve(normal, right)
        matrix += step[:9].reshape(3, 3).T / LEVER_MM
        shift += step[9:]
        if np.abs(step).max() < 0.03 or not 0.2 < np.linalg.det(matrix) < 5:
            break
    return _seen(image, affine, reference, matrix, shift)


def _against_shear(normal: Float, right: Float, matrix: Float) -> None:
    """Heads differ in their three sizes, less in shear: a ridge on the symmetric part's rest."""
    u, _, v = np.linalg.svd(matrix)
    rotation = u @ v
    symmetric = rotation.T @ matrix
    strength = SHEAR_RIDGE * np.trace(normal[:9, :9]) / 9 * LEVER_MM**2
    for i, j in ((0, 1), (0, 2), (1, 2)):
        slope = np.zeros((3, 3))
        slope[:, j] += rotation[:, i]
        slope[:, i] += rotation[:, j]
        change = slope.T.ravel() / LEVER_MM
        normal[:9, :9] += strength * np.outer(change, change)
        right[:9] -= strength * (symmetric[i, j] + symmetric[j, i]) * change


def _symmetry(image: NDArray[np.float32], affine: Float, reference: _Reference, fit: _Fit) -> float:
    """Correlation of the head with its mirror image in its own frame."""
    rotation, right = fit.rotation, reference.points_mm[:, 2] > 0
    points = reference.points_mm[right]
    sides = [points, points * [1.0, 1.0, -1.0]]
    a, b = (_sampled(image, affine, side @ rotation.T + fit.shift) for side in sides)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 100:
        return -1.0
    value = float(np.corrcoef(a[both], b[both])[0, 1])
    return value if np.isfinite(value) else -1.0
