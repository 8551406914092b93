"""An analytic head whose every point is known in mm and HU, sampled on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from headct.volume.volume import AIR_HU, Volume


class HeadModel:
    """Ellipsoids of scalp, skull and brain, a calcification, and a table under the head."""

    centre_mm = np.array([-40.0, 12.0, 7.0])
    radii_mm = np.array([88.0, 92.0, 74.0])
    landmark_mm = centre_mm + np.array([15.0, 25.0, 30.0])
    """In front, above and to the patient's right of the centre."""
    landmark_radius_mm = 7.0
    scalp_hu, skull_hu, brain_hu, landmark_hu, table_hu = 20, 900, 35, 200, 150

    def depth(self, world_mm: np.ndarray) -> np.ndarray:
        """1 on the surface of the head, 0 in its centre."""
        place = (world_mm - self.centre_mm) / self.radii_mm
        return np.sqrt(np.einsum("...i,...i->...", place, place))

    def hu(self, world_mm: np.ndarray, table: bool) -> np.ndarray:
        """HU at points (S, A, R); [... 3] -> [...]."""
        depth = self.depth(world_mm)
        hu = np.full(depth.shape, float(AIR_HU + 24))
        hu[depth < 1] = self.scalp_hu
        hu[depth < 0.93] = self.skull_hu
        hu[depth < 0.85] = self.brain_hu
        away_mm = world_mm - self.landmark_mm
        near = np.einsum("...i,...i->...", away_mm, away_mm) < self.landmark_radius_mm**2
        hu[near] = self.landmark_hu
        if table:
            back_mm = world_mm[..., 1] - (self.centre_mm[1] - self.radii_mm[1])
            wide = np.abs(world_mm[..., 2] - self.centre_mm[2]) < 120
            hu[(back_mm < -1) & (back_mm > -25) & wide] = self.table_hu
        return hu

    def on(self, affine: np.ndarray, shape: tuple[int, ...], *, table: bool = True) -> Volume:
        """The head on a grid, each voxel the mean of four points in it."""
        corners = 0.25 * np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
        hu = np.mean([self.hu(world_of(affine, shape, c), table) for c in corners], axis=0)
        return Volume(np.rint(hu).astype(np.int16), affine)

    def find_landmark_mm(self, volume: Volume) -> np.ndarray:
        """Centre of mass of the calcification, (S, A, R)."""
        world = world_of(volume.affine_zyx, volume.shape_zyx)
        near = np.linalg.norm(world - self.landmark_mm, axis=-1) < 2 * self.landmark_radius_mm
        weights = np.where(near, volume.hu.astype(float) - self.brain_hu, 0).clip(0)
        return (world * weights[..., None]).sum((0, 1, 2)) / weights.sum()

    def depth_on(self, volume: Volume) -> np.ndarray:
        """`depth` at each voxel of a volume."""
        return self.depth(world_of(volume.affine_zyx, volume.shape_zyx))

    def far_from_landmark(self, volume: Volume) -> np.ndarray:
        """True where no voxel is touched by the calcification."""
        world = world_of(volume.affine_zyx, volume.shape_zyx)
        return np.linalg.norm(world - self.landmark_mm, axis=-1) > 2 * self.landmark_radius_mm


def world_of(affine: np.ndarray, shape: tuple[int, ...], shift: object = 0) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) + shift
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture(scope="session")
def model() -> HeadModel:
    """The analytic head."""
    return HeadModel()


@pytest.fixture(scope="session")
def scanner_head(model: HeadModel) -> Volume:
    """The head as a scanner gives it: 4 mm slices, rows to posterior, columns to the left."""
    affine = np.array([[4.0, 0, 0, -140], [0, -2.0, 0, 130], [0, 0, -2.0, 125], [0, 0, 0, 1]])
    return model.on(affine, (52, 120, 118))
