"""A landmark lands where it is, in mm, whatever the order, flip, tilt and obliqueness."""

from __future__ import annotations

import shutil

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from headct.volume.read import read_series

FLIPS = [np.diag(signs) for signs in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1))]
"""Supine, prone, feet first, and both: rotations, so that left stays left."""


@settings(max_examples=12, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-25, 25)] * 3),
    flip=st.sampled_from(FLIPS),
    caudal=st.booleans(),
    shear=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    columns=st.integers(44, 60),
    column_mm=st.floats(3.0, 4.0),
    seed=st.integers(0, 99),
)
def test_landmarks_are_where_they_are(
    tmp_path_factory, phantom, angles, flip, caudal, shear, columns, column_mm, seed
):
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flip
    folder = phantom.write(
        tmp_path_factory.mktemp("scan") / "s",
        n=26,
        rows=56,
        columns=columns,
        spacing=(3.2, column_mm),
        step_mm=-5.0 if caudal else 5.0,
        axes=turn,
        shear=shear,
        shuffle_seed=seed,
    )
    volume = read_series(folder)
    shutil.rmtree(folder)
    index = np.indices(volume.hu.shape).reshape(3, -1)
    world = volume.affine_zyx[:3, :3] @ index + volume.affine_zyx[:3, 3:]
    for (left, posterior, superior), value in zip(phantom.landmarks, phantom.values, strict=True):
        found = world[:, volume.hu.ravel() == value].mean(axis=1)
        assert np.abs(found - [superior, -posterior, -left]).max() < 2.0
