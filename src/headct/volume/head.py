"""Where the head is: its mask without table, headrest and holder, and its place for a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from headct.volume.extent import cranium_box, vertex
from headct.volume.masks import (
    Mask,
    between,
    box_of,
    dilated,
    dilated_by_box,
    dilated_within,
    eroded_by_box,
)
from headct.volume.volume import Zyx

TISSUE_HU = -300
"""Between fat and the foam of a headrest."""
BONE_HU = 250
SOLID_MM = 60.0
"""Tissue at least this wide in both directions is head or neck; couch and holder are thinner."""
SCALP_MM = 14.0
"""Tissue this near to the outline of the bones is head."""
PIECE_MARGIN_MM = ((15.0, 40.0), (30.0, 30.0))
"""Cheeks, nose and ears: loose pieces that touch the head and reach no further beyond the skull's
box than this to the back, front, left and right; a couch does."""
BRAIN_MM = 40.0
"""A cavity at least this wide in both directions can be a brain's."""
BONE_PIECE_CM3 = 5.0
CLEAR_MM = 3.0
"""Air around the head that is kept as scanned."""
WORK_SPACING_MM = 3.5


@dataclass(frozen=True, eq=False)
class Head:
    """The head in one volume.

    Attributes:
        hu: [z y x], the volume on a thinned-out grid.
        affine_zyx: of that grid, to world mm.
        mask: True is head.
        surround: the head and the air next to it, True is kept in the canonical volume.
        cavity: True where a ring of bone encloses something wide enough for a brain.
        vertex_mm: S coordinate of the top of the head, or of the scan where it ends below that.
        centre_mm_yx: A and R coordinate of the middle of the cranium's box.
        size_mm_zyx: below the vertex; of the cranium's box in the plane.
    """

    hu: NDArray[Any]
    affine_zyx: NDArray[np.float64]
    mask: Mask
    surround: Mask
    cavity: Mask
    vertex_mm: float
    centre_mm_yx: tuple[float, float]
    size_mm_zyx: Zyx

    @property
    def spacing_mm_zyx(self) -> NDArray[np.float64]:
        """Of the thinned-out grid."""
        return np.asarray(np.linalg.norm(self.affine_zyx[:3, :3], axis=0))

    @property
    def voxel_cm3(self) -> float:
        """Volume of a voxel of the thinned-out grid."""
        return float(abs(np.linalg.det(self.affine_zyx[:3, :3]))) / 1000


def find_head(hu: NDArray[Any], affine_zyx: NDArray[np.float64]) -> Head | None:
    """The bones, what they enclose and the tissue on them; None where there is no solid piece.

    Args:
        hu: [z y x], axes near S, A and R (see `closest_ras`).
        affine_zyx: to world mm; shear from gantry tilt is fine.
    """
    strides = _strides(affine_zyx)
    thin = np.ascontiguousarray(hu[tuple(slice(s // 2, None, s) for s in strides)])
    affine = affine_zyx @ _stride_matrix(strides)
    shown: Mask = np.any(thin > TISSUE_HU, axis=0)
    box = box_of(shown, margin=1)
    if box is None:
        return None
    every = (slice(None), *box)
    found = _masks(thin[every], np.linalg.norm(affine[:3, :3], axis=0))
    if found is None:
        return None
    whole = np.zeros((len(found), *thin.shape), bool)
    for out, part in zip(whole, found, strict=True):
        out[every] = part
    core, mask, surround, cavity = whole
    vertex_mm = vertex(mask, affine)
    centre_mm, size_mm = cranium_box(core, affine, vertex_mm)
    return Head(thin, affine, mask, surround, cavity, vertex_mm, centre_mm, size_mm)


def _masks(thin: NDArray[Any], spacing_mm: NDArray[np.float64]) -> tuple[Mask, ...] | None:
    """Solid core, head, surround and cavity, in a volume that is cut to its tissue in the plane."""
    dense, solid = thin > BONE_HU, thin > TISSUE_HU
    cavity = _cavity(dense, spacing_mm)
    couch = _couch(solid, cavity)
    tissue = solid & ~couch
    skull = _outline(_head_bones(dense & ~couch, spacing_mm))
    core = _largest(skull | _opened(tissue, spacing_mm))
    if core is None:
        return None
    mask = _with_pieces(_with_scalp(core, skull, tissue, spacing_mm), skull, tissue, spacing_mm)
    return core, mask, _grown(mask, spacing_mm) & ~couch, cavity & mask


def _strides(affine_zyx: NDArray[np.float64]) -> tuple[int, ...]:
    spacing_mm = np.linalg.norm(affine_zyx[:3, :3], axis=0)
    return tuple(max(1, round(WORK_SPACING_MM / mm)) for mm in spacing_mm)


def _stride_matrix(strides: tuple[int, ...]) -> NDArray[np.float64]:
    matrix = np.diag([*map(float, strides), 1.0])
    matrix[:3, 3] = [s // 2 for s in strides]
    return matrix


def _couch(tissue: Mask, cavity: Mask) -> Mask:
    """What is in the topmost slice but not over the brain, followed down the table's axis.

    Returns:
        [1 y x], True where the couch or holder is in every slice. Rows of a tilted gantry keep
        their place along A, so that this holds for them too.
    """
    over_brain = cavity.any(axis=0)
    labels, n = ndimage.label(tissue[-1])
    is_couch = np.full(n + 1, over_brain.any())
    is_couch[0] = False
    is_couch[np.unique(labels[over_brain])] = False
    return np.asarray(is_couch[labels])[None]


def _cavity(bones: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """Slice by slice, what a ring of bone encloses, where it is wide enough for a brain.

    Sutures and thin bone that fell between the voxels are bridged; the cavity keeps one voxel
    away from the bone.
    """
    cavity = np.zeros_like(bones)
    box = box_of(bones, margin=2)  # all that lies beyond is outside of every ring
    if box is None:
        return cavity
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, n = ndimage.label(~dilated(bones[box], (1, 2)), in_plane)
    enclosed = np.ones(n + 1, bool)
    enclosed[0] = False
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        enclosed[edge] = False
    boxes = ndimage.find_objects(labels)
    for piece in np.flatnonzero(enclosed):
        sides = [
            (s.stop - s.start) * mm for s, mm in zip(boxes[piece - 1], spacing_mm, strict=True)
        ]
        enclosed[piece] = min(sides[1:]) > BRAIN_MM
    cavity[box] = enclosed.take(labels)
    return cavity


def _outline(bones: Mask) -> Mask:
    """Slice by slice, everything that lies between bones along both axes of the plane."""
    return between(bones, 1) & between(bones, 2)


def _opened(tissue: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """Tissue that squares of SOLID_MM fit into, slice by slice."""
    sizes = [1, *(max(1, round(SOLID_MM / mm)) | 1 for mm in spacing_mm[1:])]
    return dilated_by_box(eroded_by_box(tissue, sizes), sizes)


def _head_bones(bones: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """The piece of bone that encloses most, and the pieces above, below or within its outline."""
    kept = np.zeros_like(bones)
    box = box_of(bones)
    if box is None:
        return kept
    labels, n = ndimage.label(bones[box], ndimage.generate_binary_structure(3, 2))
    cm3 = np.bincount(labels.ravel(), minlength=n + 1) * np.prod(spacing_mm) / 1000
    large = [piece for piece in range(1, n + 1) if cm3[piece] > BONE_PIECE_CM3]
    if not large:
        return kept
    boxes = ndimage.find_objects(labels)
    enclosed = [_enclosed(labels[boxes[p - 1]] == p) for p in large]
    skull = boxes[large[int(np.argmax(enclosed))] - 1]
    keep = np.zeros(n + 1, bool)
    keep[large] = [_centred_in(boxes[p - 1], skull) for p in large]
    kept[box] = keep.take(labels)
    return kept


def _centred_in(box: tuple[slice, ...], skull: tuple[slice, ...]) -> bool:
    """Whether the middle of a piece lies over the skull in the plane: jaw and spine, not rails."""
    middles = [(part.start + part.stop) / 2 for part in box[1:]]
    return all(s.start <= m <= s.stop for m, s in zip(middles, skull[1:], strict=True))


def _enclosed(bones: Mask) -> int:
    return int(_outline(bones).sum() - bones.sum())


def _largest(solid: Mask) -> Mask | None:
    labels, n = ndimage.label(solid)
    if n == 0:
        return None
    if n == 1:
        return solid
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _with_scalp(core: Mask, skull: Mask, tissue: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """The core, one voxel more, and the tissue within SCALP_MM of the bones' outline."""
    n = round(SCALP_MM / float(spacing_mm[1:].mean()))
    return core | dilated_within(skull & core, tissue, n) | dilated_within(core, tissue)


def _with_pieces(head: Mask, skull: Mask, tissue: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """Loose pieces that touch the head and stay near the skull come back."""
    box = box_of(skull)
    if box is None:
        return head
    limits = _limits(box, spacing_mm)
    labels, n = ndimage.label(tissue & ~head)
    boxes = ndimage.find_objects(labels)
    wanted = np.zeros(n + 1, bool)
    for piece in np.unique(labels[dilated(head) & (labels > 0)]):
        wanted[piece] = _inside(boxes[piece - 1][1:], limits)
    return np.asarray(head | wanted.take(labels))


def _limits(skull: tuple[slice, ...], spacing_mm: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Lowest start and highest stop of a piece along A and R, in voxels."""
    return [
        (part.start - low / mm, part.stop + high / mm)
        for part, (low, high), mm in zip(skull[1:], PIECE_MARGIN_MM, spacing_mm[1:], strict=True)
    ]


def _inside(box: tuple[slice, ...], limits: list[tuple[float, float]]) -> bool:
    return all(
        low <= s.start and s.stop <= high for s, (low, high) in zip(box, limits, strict=True)
    )


def _grown(mask: Mask, spacing_mm: NDArray[np.float64]) -> Mask:
    """With everything within CLEAR_MM, at least one voxel."""
    sizes = [2 * max(1, round(CLEAR_MM / mm)) + 1 for mm in spacing_mm]
    return dilated_by_box(mask, sizes)
