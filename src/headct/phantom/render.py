"""ScanSpec -> HU and truth on any grid.

The head is painted on sub-slices, block by block so that arrays stay in cache; sub-slices are
averaged over the slice thickness; then the scanner has its say. Cost is linear in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headct.errors import GeometryError
from headct.phantom.brain import Compartments, paint_brain
from headct.phantom.canvas import Canvas
from headct.phantom.exact import weighted
from headct.phantom.fields import Floats, lattice_nodes, upsampling
from headct.phantom.findings import displacement
from headct.phantom.head import AIR_HU as OUTSIDE_HU
from headct.phantom.head import HeadMaps, paint_head
from headct.phantom.lesions import Share, paint_fractures, paint_lesions
from headct.phantom.metal import paint_implants
from headct.phantom.scan import (
    ScanSpec,
    acquisition_grid,
    canonical_affine,
    draw_scan,
    head_box_mm,
    highest_mm,
    mirrored,
)
from headct.phantom.scanner import Grid, apply_scanner, paint_table
from headct.phantom.spectrum import brain_at, lesions_at, skull_at
from headct.phantom.subslices import subslices
from headct.phantom.truth import describe
from headct.volume.volume import AIR_HU, MAX_HU, MIN_HU
from headct.workers import one_blas_thread

__all__ = [
    "Rendered",
    "ScanSpec",
    "acquisition_grid",
    "canonical_affine",
    "draw_scan",
    "head_box_mm",
    "mirrored",
    "render_scan",
]

LATTICE_MM = 9.0
"""Smooth maps are computed at every ninth millimetre and interpolated."""
BLOCK_VOXELS = 160_000
"""Voxels painted at a time: what fits into the cache."""
VAULT_CENTRE_MM, VAULT_HALF_MM = (0.0, 0.0, 4.0), (69.0, 87.0, 68.0)
"""Box of the intracranial space: the brain is painted in it alone."""
CLEAR_MM = 3.0
"""Ingest keeps this much air around the head, at least one voxel."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """A rendered scan and the truth about it.

    Attributes:
        hu: int16 [z y x].
        masks: finding -> bool [z y x], where it is in the picture and has a place; empty where
            masks were not asked for.
        truth: plain JSON values, see `truth.describe`.
    """

    hu: NDArray[np.int16]
    masks: dict[str, NDArray[np.bool_]]
    truth: dict[str, Any]


@one_blas_thread()
def render_scan(
    spec: ScanSpec,
    shape_zyx: tuple[int, int, int],
    affine_zyx: NDArray[np.float64],
    masks: bool = True,
    scanner: bool = True,
    as_ingested: bool = False,
) -> Rendered:
    """Render a scan on a grid.

    Args:
        spec: see `draw_scan`.
        shape_zyx: voxels of the grid.
        affine_zyx: 4x4, voxel index (z, y, x) -> (S, A, R) in mm of the scanner frame; sheared
            and anisotropic ones are fine.
        masks: also make truth masks.
        scanner: False leaves out table, calibration, artefacts, kernel and noise.
        as_ingested: leave the head alone in air of AIR_HU, as ingest does, and see no more of it
            than the slices did.

    Raises:
        GeometryError: an empty grid or a singular affine.
    """
    affine = np.asarray(affine_zyx, dtype=np.float64)
    if min(shape_zyx) < 1 or affine.shape != (4, 4) or abs(np.linalg.det(affine)) < 1e-9:
        raise GeometryError("a phantom is rendered on a grid with voxels and an invertible affine")
    if spec.mirror:
        affine = _mirror(affine, shape_zyx[2])
    painted = _Painting(spec, shape_zyx, affine, masks, as_ingested)
    painted.paint(table=scanner and not as_ingested)
    hu, grid = painted.averaged(painted.hu), Grid.of(shape_zyx, affine)
    if scanner:
        hu = apply_scanner(hu, grid, spec.acquisition, spec.streaks)
    if as_ingested:
        hu[painted.averaged(painted.near) <= 0] = AIR_HU
        hu[~np.broadcast_to(_scanned(spec, grid), hu.shape)] = AIR_HU
    stored = np.clip(np.rint(hu), MIN_HU, MAX_HU).astype(np.int16)
    found = {name: painted.averaged(share) > 0.5 for name, share in painted.shares.items()}
    if spec.mirror:
        stored = np.ascontiguousarray(stored[:, :, ::-1])
        found = {name: np.ascontiguousarray(mask[:, :, ::-1]) for name, mask in found.items()}
    return Rendered(stored, found, describe(spec, painted.volume_ml, painted.csf_ml))


def _mirror(affine: NDArray[np.float64], n_columns: int) -> NDArray[np.float64]:
    """The affine whose picture, with its columns reversed, is the mirror image."""
    flipped = affine.copy()
    flipped[:3, 3] += affine[:3, 2] * (n_columns - 1)
    flipped[:3, 2] *= -1
    flipped[2] *= -1
    return flipped


def _scanned(spec: ScanSpec, grid: Grid) -> NDArray[np.bool_]:
    """Which voxels lie between the first and the last slice, broadcastable to the grid."""
    a = spec.acquisition
    level = grid.superior - grid.anterior * np.float32(np.tan(np.deg2rad(a.gantry_tilt_deg)))
    return np.asarray((level >= -a.below_mm) & (level <= highest_mm(spec)))


def _in_plane(lattice: Floats, up: list[Floats]) -> Floats:
    """Nodes [3 z y x] of a lattice, in plane interpolated to all voxels: [z 3 y x]."""
    columns = weighted(up[2], np.ascontiguousarray(lattice.transpose(3, 2, 1, 0)))
    rows = weighted(up[1], np.ascontiguousarray(columns.swapaxes(0, 1)))
    return np.ascontiguousarray(rows.transpose(2, 3, 0, 1))


class _Painting:
    """The state of one rendering: sub-slices, the smooth map, what has been painted."""

    def __init__(
        self,
        spec: ScanSpec,
        shape_zyx: tuple[int, int, int],
        affine: NDArray[np.float64],
        masks: bool,
        as_ingested: bool,
    ) -> None:
        self.spec = spec
        self.average, self.affine = subslices(
            shape_zyx, affine, spec.acquisition.slice_thickness_mm
        )
        self.shape = (self.average.shape[1], *shape_zyx[1:])
        self.spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        self.hu = np.full(self.shape, OUTSIDE_HU, np.float32)
        self.near = np.zeros(self.shape, np.float32)
        self.shares: dict[str, Floats] = {}
        self.volume_ml: dict[str, float] = {}
        self.csf_ml = (0.0, 0.0)
        self.masks = masks
        self.scanned: NDArray[np.bool_] | None = None
        if as_ingested:
            seen = _scanned(spec, Grid.of(self.shape, self.affine))
            self.scanned = None if seen.all() else np.broadcast_to(seen, self.shape)
        self.weights = self.average.sum(axis=0)
        a = spec.acquisition
        iodine_hu = a.contrast.vessel_hu if a.contrast else 0.0
        self.anatomy = replace(spec.anatomy, skull=skull_at(spec.anatomy.skull, a.kvp))
        self.brain = brain_at(spec.brain, a.kvp, iodine_hu)
        self.lesions = lesions_at(spec.lesions, iodine_hu)
        self.voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) * 1e-3

    def averaged(self, values: Floats) -> Floats:
        """Sub-slices [s y x] -> slices [z y x]."""
        n_out, n_sub = self.average.shape
        if n_out == n_sub and np.array_equal(self.average, np.eye(n_out)):
            return values
        return weighted(self.average, values)

    def paint(self, table: bool) -> None:
        """Paint block by block, with or without the table."""
        maps, margin = self._lattice()
        steps = self._steps()
        up = [upsampling(n, step) for n, step in zip(self.shape, steps, strict=True)]
        maps = [_in_plane(m, up) for m in maps]
        thickness = max(1, BLOCK_VOXELS // (self.shape[1] * self.shape[2]))
        index_from_head = self._index_from_head()
        blur_mm = float(np.cbrt(self.spacing.prod()))
        for start in range(0, self.shape[0], thickness):
            rows = slice(start, min(start + thickness, self.shape[0]))
            here = index_from_head.copy()
            here[0, 3] -= start
            fine = [weighted(up[0][rows], m).swapaxes(0, 1) for m in maps]
            (x, y, z), (xb, yb, zb) = fine[0], fine[-1]
            canvas = Canvas(self.hu[rows], x, y, z, xb, yb, zb, blur_mm, here, margin)
            self._paint_block(canvas, start)
            if table:
                self._paint_table(canvas.hu, start)

    def _steps(self) -> list[int]:
        """Voxels between the nodes of the lattice, per axis."""
        return [max(1, round(LATTICE_MM / mm)) for mm in self.spacing]

    def _paint_block(self, canvas: Canvas, start: int) -> None:
        spec = self.spec
        maps = paint_head(canvas, self.anatomy, spec.swellings)
        clear_mm = max(CLEAR_MM, float(self.spacing.max()))
        self.near[start : start + canvas.hu.shape[0]] = maps.surface < clear_mm
        for share in paint_fractures(canvas, maps, spec.lesions):
            self._keep(share, (start, 0, 0))
        self._paint_brain(canvas, maps, start)
        paint_implants(canvas, spec.implants)

    def _paint_brain(self, canvas: Canvas, maps: HeadMaps, start: int) -> None:
        where = canvas.box(VAULT_CENTRE_MM, VAULT_HALF_MM)
        if where is None:
            return
        inner, maps = canvas.part(where), maps.part(where)
        parts = paint_brain(inner, maps, self.brain)
        offset = (start + where[0].start, where[1].start, where[2].start)
        self._measure(parts, offset[0])
        for share in paint_lesions(inner, maps, parts, self.lesions):
            self._keep(share, offset)

    def _measure(self, parts: Compartments, start: int) -> None:
        weights = self.weights[start : start + parts.csf.shape[0]] * self.voxel_ml
        outside, within = (
            float((share.sum(axis=(1, 2)) * weights).sum())
            for share in (parts.csf, parts.ventricle)
        )
        self.csf_ml = (self.csf_ml[0] + outside, self.csf_ml[1] + within)

    def _paint_table(self, hu: Floats, start: int) -> None:
        low, _ = head_box_mm(self.spec)
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, 0] * start
        grid = Grid.of((hu.shape[0], *self.shape[1:]), affine)
        paint_table(hu, grid, self.spec.acquisition.table, float(low[1]))

    def _keep(self, share: Share, offset: tuple[int, int, int]) -> None:
        finding, box, values = share
        z, y, x = (slice(s.start + o, s.stop + o) for s, o in zip(box, offset, strict=True))
        if self.scanned is not None:
            values = values * self.scanned[z, y, x]
        total = float((values.sum(axis=(1, 2)) * self.weights[z]).sum()) * self.voxel_ml
        self.volume_ml[finding] = self.volume_ml.get(finding, 0.0) + total
        if self.masks:
            kept = self.shares.setdefault(finding, np.zeros(self.shape, np.float32))
            kept[z, y, x] = np.maximum(kept[z, y, x], values)

    def _lattice(self) -> tuple[list[Floats], float]:
        """Head coordinates [3 z y x] of a coarse lattice, and the largest displacement in mm.

        One map where skull and brain move together, else the skull's and the brain's.
        """
        nodes = [
            (np.arange(lattice_nodes(n, step)) - 1) * step
            for n, step in zip(self.shape, self._steps(), strict=True)
        ]
        index = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, 3)
        world = index @ self.affine[:3, :3].T + self.affine[:3, 3]
        a, anatomy = self.spec.acquisition, self.spec.anatomy
        upright = (world[:, ::-1] - a.shift_mm) @ a.rotation / np.asarray(anatomy.scale)
        bend = anatomy.deformation.at(upright)
        head = upright + bend
        margin = float(np.abs(bend).max())
        shape = [len(n) for n in nodes]
        effects = self.spec.mass_effects
        skull = head.T.reshape(3, *shape).astype(np.float32)
        if not effects:
            return [skull], margin
        moved = displacement(effects, head)
        brain = (head + moved).T.reshape(3, *shape).astype(np.float32)
        return [skull, brain], margin + float(np.abs(moved).max())

    def _index_from_head(self) -> NDArray[np.float64]:
        a = self.spec.acquisition
        world_from_head = np.eye(4)
        world_from_head[:3, :3] = (a.rotation * np.asarray(self.spec.anatomy.scale))[::-1]
        world_from_head[:3, 3] = a.shift_mm[::-1]
        return np.asarray(np.linalg.inv(self.affine) @ world_from_head)
