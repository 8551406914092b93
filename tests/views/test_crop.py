import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from headct.errors import UsageError
from headct.views.crop import (
    CropConfig,
    PoseConfig,
    global_shapes,
    local_shape,
    place_globals,
    place_locals,
    place_stretched,
)
from headct.views.cut import Placement, apply_axes, cut, rotation_matrix
from headct.views.draws import Draws, generator
from headct.views.mask import patch_occupancy

NO_SPREAD = (None, None, None)
GRID, SPACING = (16, 20, 12), (4.0, 2.0, 3.0)


def drawn(config: PoseConfig, n: int) -> dict[str, torch.Tensor]:
    values = config.draw(Draws([generator(1, "views", 0, 0)]), n)
    return {name: torch.from_numpy(value) for name, value in values.items()}


def smooth_scan() -> torch.Tensor:
    z, y, x = np.meshgrid(*(np.linspace(-2, 2, n) for n in GRID), indexing="ij")
    hu = 300 * np.sin(2 * z + 1) * np.cos(1.5 * y) + 100 * x
    return torch.from_numpy(hu.astype(np.float32))[None]


def placement(**changes) -> Placement:
    values = {
        "centre_voxel": torch.tensor([[7.5, 9.5, 5.5]]),
        "step": torch.ones(1, 3),
        "rotation": torch.eye(3)[None],
        "shape_zyx": GRID,
        "spacing_mm_zyx": SPACING,
        "source_shape_zyx": GRID,
    }
    return Placement(**values | changes)


def test_both_paths_agree_without_rotation():
    config = PoseConfig(rotation_lr_deg=0, rotation_deg=0)
    at = place_globals(drawn(config, 5), (8, 12, 8), GRID, SPACING)
    by_axes = cut(smooth_scan(), at, NO_SPREAD, "axes")
    by_sampling = cut(smooth_scan(), at, NO_SPREAD, "sample")
    torch.testing.assert_close(by_axes, by_sampling, atol=0.05, rtol=0)


def test_a_view_that_stays_still_is_a_slice():
    config = PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0, shift_mm=0, flip_probability=0.5)
    assert config.path == "slice"
    at = place_globals(drawn(config, 6), (8, 12, 8), GRID, SPACING)
    scans = torch.cat([smooth_scan(), smooth_scan().flip(1)])
    by_slices, by_axes = (cut(scans, at, NO_SPREAD, path) for path in ("slice", "axes"))
    torch.testing.assert_close(by_slices, by_axes, atol=1e-3, rtol=0)


def test_the_general_path_is_scipys_affine_in_mm():
    turn = torch.tensor([[5.0, -7.0, 12.0]])
    step = torch.tensor([[1.05, 0.95, -1.0]])
    at = placement(rotation=rotation_matrix(turn), step=step)
    mm = np.array(SPACING)
    matrix = np.diag(1 / mm) @ at.rotation[0].double().numpy() @ np.diag(mm * step[0].numpy())
    centre = (np.array(GRID) - 1) / 2
    expected = affine_transform(
        smooth_scan()[0].numpy() + 1024,
        matrix,
        centre - matrix @ centre,
        order=1,
        mode="grid-constant",
    )
    got = cut(smooth_scan(), at, NO_SPREAD, "sample")[0].numpy() + 1024
    np.testing.assert_allclose(got, expected, atol=0.1)


def test_rotation_is_about_the_named_axes():
    nod = rotation_matrix(torch.tensor([[0.0, 0.0, 10.0]]))[0].double().numpy()
    anterior = nod @ np.array([0.0, 1.0, 0.0])
    assert anterior[2] == pytest.approx(0)  # left-right is the axis
    assert abs(anterior[0]) == pytest.approx(np.sin(np.deg2rad(10)), abs=1e-6)
    any_turn = rotation_matrix(torch.tensor([[3.0, 20.0, -40.0]]))[0].double().numpy()
    Rotation.from_matrix(any_turn[::-1, ::-1])  # a proper rotation, or scipy refuses
    np.testing.assert_allclose(any_turn @ any_turn.T, np.eye(3), atol=1e-6)


def test_outside_the_scan_is_air():
    at = placement(centre_voxel=torch.tensor([[7.5, 9.5, -20.0]]))
    for path in ("axes", "sample"):
        assert (cut(smooth_scan(), at, NO_SPREAD, path) == -1024).all()


def test_coordinates_in_mm():
    at = placement(centre_voxel=torch.tensor([[7.5, 9.5, 5.5]]), shape_zyx=(4, 4, 4))
    assert at.axis_mm(1)[0].tolist() == [-3.0, -1.0, 1.0, 3.0]
    assert at.below_top_mm()[0].tolist() == [38.0, 34.0, 30.0, 26.0]


def test_global_crops_stay_inside_the_field_of_view():
    config = PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0, shift_mm=0)
    at = place_globals(drawn(config, 200), (8, 12, 8), GRID, SPACING)
    low = at.centre_voxel - (torch.tensor([8, 12, 8]) - 1) / 2
    high = at.centre_voxel + (torch.tensor([8, 12, 8]) - 1) / 2
    assert (low >= 0).all()
    assert (high <= torch.tensor(GRID) - 1).all()
    assert len(low.unique(dim=0)) > 50
    assert torch.equal(low, low.round())


def test_local_crops_sit_on_the_head():
    scan = torch.full((1, 32, 32, 32), -1000.0)
    scan[:, 8:12, 20:24, 16:20] = 30.0
    config = PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0, shift_mm=0)
    occupancy = patch_occupancy(scan, (4, 4, 4)).repeat_interleave(50, 0)
    at = place_locals(drawn(config, 50), (8, 8, 8), occupancy, (4, 4, 4), (1.0, 1.0, 1.0))
    middle = at.centre_voxel + 0.5
    assert ((middle >= torch.tensor([8, 20, 16])) & (middle <= torch.tensor([12, 24, 20]))).all()


def test_a_scan_of_air_still_gives_local_crops():
    occupancy = torch.zeros(6, 4, 4, 4)
    at = place_locals(drawn(PoseConfig(), 6), (8, 8, 8), occupancy, (4, 4, 4), (1.0, 1.0, 1.0))
    assert torch.isfinite(at.centre_voxel).all()


def test_shapes_are_whole_patches():
    config = CropConfig(global_fraction=(0.75, 1.0), local_mm=64)
    assert global_shapes(config, (48, 64, 48), (8, 8, 8)) == [[40, 48], [48, 56, 64], [40, 48]]
    assert local_shape(config, (96, 120, 96), (2.0, 2.0, 2.0), (8, 8, 8)) == (32, 32, 32)
    assert local_shape(config, (48, 240, 192), (4.0, 1.0, 1.0), (4, 16, 16)) == (16, 64, 64)


def test_a_local_crop_of_one_patch_is_the_smallest():
    place = (48, 64, 48), (3.3, 3.3, 3.3), (8, 8, 8)
    for mm in (26.0, 26.4):
        assert local_shape(CropConfig(local_mm=mm), *place) == (8, 8, 8)
    for mm in (5.0, 25.0):
        with pytest.raises(UsageError, match=r"smaller than a patch of 26\.4 mm") as caught:
            local_shape(CropConfig(local_mm=mm), *place)
        assert "views.crop.local_mm" in caught.value.remedy
    assert local_shape(CropConfig(local_mm=5.0, n_local=0), *place) == (8, 8, 8)
    assert local_shape(CropConfig(local_mm=5.0, stretch=True), *place) == (48, 64, 48)


def test_apply_axes_is_an_einsum():
    hu, rng = torch.rand(3, 4, 5, 6), torch.Generator().manual_seed(0)
    z, y, x = (torch.rand(3, n + 1, n, generator=rng) for n in (4, 5, 6))
    expected = torch.einsum("nzyx,naz,nby,ncx->nabc", hu, z, y, x)
    torch.testing.assert_close(apply_axes(hu, (z, y, x)), expected)


STRETCH = CropConfig(stretch=True)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_stretched_crop_is_its_box_resized_to_the_whole_grid(flip):
    still = {"rotation_lr_deg": 0, "rotation_deg": 0, "zoom": 0, "shift_mm": 0}
    pose = PoseConfig(**still, flip_probability=flip, flip_others_probability=flip)
    values = drawn(pose, 3)
    share = STRETCH.draw(Draws([generator(2, "views", 0, 0)]), 3, (0.5, 0.9))["edge_fraction"]
    at = place_stretched(values | {"edge_fraction": torch.from_numpy(share)}, GRID, SPACING)
    views = cut(smooth_scan(), at, NO_SPREAD, "axes")
    assert views.shape == (3, *GRID)
    for n in range(3):
        edge = share[n] * np.array(GRID)
        start = values["place"][n, 1:].numpy() * (np.array(GRID) - edge)
        step = edge / np.array(GRID)
        first = start + step / 2 - 0.5
        expected = affine_transform(
            smooth_scan()[0].numpy() + 1024,
            np.diag(step),
            first,
            order=1,
            mode="grid-constant",
        )
        if flip:
            expected = expected[::-1, ::-1, ::-1]
        np.testing.assert_allclose(views[n].numpy() + 1024, expected, atol=0.1)


def test_stretched_crops_have_the_grid_of_the_scan():
    assert global_shapes(STRETCH, GRID, (4, 4, 4)) == [[16], [20], [12]]
    assert local_shape(STRETCH, GRID, SPACING, (4, 4, 4)) == GRID
    with pytest.raises(UsageError, match="does not lie within"):
        local_shape(CropConfig(stretch=True, local_fraction=(0.5, 1.2)), GRID, SPACING, (4, 4, 4))


def test_slices_are_flipped_along_every_axis():
    config = PoseConfig(
        rotation_lr_deg=0, rotation_deg=0, zoom=0, shift_mm=0, flip_others_probability=0.5
    )
    at = place_globals(drawn(config, 8), (8, 12, 8), GRID, SPACING)
    assert (at.step < 0).any(0).all()
    assert (at.step > 0).any(0).all()
    by_slices, by_axes = (cut(smooth_scan(), at, NO_SPREAD, path) for path in ("slice", "axes"))
    torch.testing.assert_close(by_slices, by_axes, atol=1e-3, rtol=0)
