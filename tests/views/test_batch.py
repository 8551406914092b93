import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headct.errors import UsageError
from headct.views.augment import AugmentConfig
from headct.views.batch import ViewMaker, ViewsConfig, swap_lateralised
from headct.views.crop import CropConfig, PoseConfig, place_globals
from headct.views.spread import Kernel

from .conftest import PATCH, select

CROP = CropConfig(n_global=2, n_local=3, global_fraction=(0.7, 1.0), local_mm=64.0)
STILL = PoseConfig(rotation_lr_deg=0, rotation_deg=0, zoom=0, shift_mm=0, flip_probability=0)
OFF = AugmentConfig.model_validate(
    {
        "gain": {"gain_sd": 0, "offset_sd_hu": 0},
        **{name: {"probability": 0} for name in AugmentConfig.model_fields if name != "gain"},
    }
)
EVERYTHING = AugmentConfig.model_validate(
    {name: {"probability": 0.6} for name in AugmentConfig.model_fields if name != "gain"}
)
PLACES = [(0, 0), (0, 1), (3, 2), (0, 7)]


def maker(grid, **config) -> ViewMaker:
    return ViewMaker(ViewsConfig(**{"crop": CROP} | config), grid, PATCH, select, seed=5)


def test_a_batch_is_rectangular_and_consistent(grid, heads):
    views = maker(grid).make(heads, PLACES, step=2)
    b, g, z, y, x = views.globals_hu.shape
    assert (b, g) == (4, 2)
    assert all(n % p == 0 for n, p in zip((z, y, x), PATCH, strict=True))
    assert views.locals_hu.shape == (4, 3, 8, 8, 8)
    assert views.keep.shape == views.masked.shape == (4, 2, 20)
    assert (views.keep.diff(dim=-1) > 0).all()
    assert (views.masked.sum(-1) == views.n_masked).all()
    assert 10 <= views.n_masked <= 16
    assert views.globals_hu.min() >= -1024
    assert torch.isfinite(views.globals_hu).all()


@pytest.mark.parametrize("pose", [PoseConfig(), PoseConfig(rotation_lr_deg=0, rotation_deg=0)])
def test_views_are_a_function_of_the_place_and_not_of_the_batch(grid, heads, pose):
    make = maker(grid, pose=pose).make
    together = make(heads, PLACES, step=2)
    alone = make(heads[2:3], PLACES[2:3], step=2)
    again = maker(grid, pose=pose).make(heads, PLACES, step=2)
    for name in ("globals_hu", "locals_hu", "keep", "masked", "flipped"):
        assert torch.equal(getattr(together, name)[2:3], getattr(alone, name))
        assert torch.equal(getattr(together, name), getattr(again, name))


def test_views_stay_while_others_are_made(grid, heads):
    make = maker(grid).make
    first = make(heads, PLACES, step=0)
    kept = first.globals_hu[1:, 1]
    before = kept.clone(), first.locals_hu.clone()
    locals_hu = first.locals_hu
    del first
    for step in range(1, 6):
        make(heads, PLACES, step=step)
        assert torch.equal(kept, before[0])
        assert torch.equal(locals_hu, before[1])


def test_every_epoch_and_position_has_views_of_its_own(grid, heads):
    same = heads[:1].repeat(3, 1, 1, 1)
    views = maker(grid).make(same, [(0, 0), (1, 0), (0, 1)], step=0).globals_hu.flatten(2)
    assert len(views.flatten(0, 1).unique(dim=0)) == 6


def test_the_seed_matters(grid, heads):
    other = ViewMaker(ViewsConfig(crop=CROP), grid, PATCH, select, seed=6)
    mine = maker(grid).make(heads, PLACES, step=0)
    assert not torch.equal(mine.locals_hu, other.make(heads, PLACES, step=0).locals_hu)


def test_with_everything_off_a_view_is_the_scan(grid, heads):
    crop = CropConfig(n_global=1, n_local=0, global_fraction=(1, 1))
    views = maker(grid, crop=crop, pose=STILL, augment=OFF).make(heads, PLACES, step=0)
    torch.testing.assert_close(views.globals_hu[:, 0], heads.float(), atol=1e-3, rtol=0)
    assert views.locals_hu.shape[1] == 0
    assert not views.flipped.any()


@pytest.mark.parametrize(
    "pose", [STILL, PoseConfig(rotation_lr_deg=0, rotation_deg=0), PoseConfig()]
)
def test_clean_views_are_those_without_augmentation(grid, heads, pose):
    crop = CropConfig(n_global=2, n_local=0)
    views = maker(grid, crop=crop, pose=pose, keep_clean=True).make(heads, PLACES, step=1)
    off = maker(grid, crop=crop, pose=pose, augment=OFF).make(heads, PLACES, step=1)
    torch.testing.assert_close(views.clean_hu, off.globals_hu, atol=1e-3, rtol=0)
    assert (views.clean_hu - views.globals_hu).abs().mean() > 1
    assert off.clean_hu is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("path", ["slice", "axes", "sample"])
def test_views_at_once_are_the_views_one_by_one(grid, heads, path, device, monkeypatch):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: what it does is done on the CPU")
    poses = {"axes": PoseConfig(rotation_lr_deg=0, rotation_deg=0), "sample": PoseConfig()}
    make = maker(grid, pose=poses.get(path, STILL), keep_clean=True, augment=EVERYTHING).make
    alone = make(heads, PLACES, step=1)
    for module in ("draws", "cut", "spread", "response"):
        monkeypatch.setattr(f"headct.views.{module}.one_by_one", lambda _: False)
    together = make(heads.to(device), PLACES, step=1)
    for name in ("globals_hu", "locals_hu", "clean_hu"):
        apart = (getattr(together, name).cpu() - getattr(alone, name)).abs()
        assert apart.mean() < 0.05
        assert (apart > 2).float().mean() < 1e-3  # edges of what is erased
    assert torch.equal(together.flipped.cpu(), alone.flipped)
    assert together.n_masked == alone.n_masked
    same = (together.keep.cpu() == alone.keep).all(-1)
    assert torch.equal(together.masked.cpu()[same], alone.masked[same])
    # on another device a patch at the rim may fall on the other side of the limit
    assert same.all() if device == "cpu" else same.float().mean() > 0.7


def test_a_view_on_a_gpu_does_not_depend_on_its_batch(grid, heads, monkeypatch):
    for module in ("draws", "cut", "spread", "response"):
        monkeypatch.setattr(f"headct.views.{module}.one_by_one", lambda _: False)
    augment = OFF.model_copy(update={"kernel": Kernel(probability=0.3)})
    make = maker(grid, augment=augment).make
    bone = heads + 1500 * (heads > 30).to(torch.int16)
    together = make(bone, PLACES, step=1).globals_hu
    for i in range(4):
        alone = make(bone[i : i + 1], PLACES[i : i + 1], step=1).globals_hu
        torch.testing.assert_close(alone[0], together[i], atol=0.02, rtol=0)


class Copies(TorchDispatchMode):
    """Remembers how many numbers each copy had."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten.clone.default:
            self.sizes.append(out.numel())
        return out


def test_the_sampling_grid_is_written_row_by_row():
    at = place_globals(
        {
            "place": torch.rand(6, 4),
            "shift_mm": torch.zeros(6, 3),
            "zoom": torch.ones(6),
            "flip": torch.zeros(6),
            "rotation_deg": torch.ones(6, 3),
        },
        (8, 12, 8),
        (16, 24, 16),
        (8.0, 8.0, 8.0),
    )
    with Copies() as copies:
        grid = at.sampling_grid(3, torch.device("cpu"))
    assert grid.shape == (3, 16, 12, 8, 3)
    assert grid.permute(0, 4, 1, 2, 3).is_contiguous()
    assert max(copies.sizes) < grid.numel()  # only what is small is laid out anew


def test_views_leave_the_threads_of_torch_to_the_step(grid, heads):
    seen = []

    def watched(hu):
        seen.append(torch.get_num_threads())
        return select(hu)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        ViewMaker(ViewsConfig(crop=CROP), grid, PATCH, watched, seed=5).make(heads, PLACES, step=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_flipped_says_which_views_are_mirrored(grid, heads):
    crop = CropConfig(n_global=4, n_local=0, global_fraction=(1, 1))
    pose = STILL.model_copy(update={"flip_probability": 0.5})
    views = maker(grid, crop=crop, pose=pose, augment=OFF).make(heads, PLACES, step=0)
    expected = torch.where(
        views.flipped[:, :, None, None, None], heads.flip(-1)[:, None], heads[:, None]
    )
    torch.testing.assert_close(views.globals_hu, expected.float(), atol=1e-3, rtol=0)
    assert 0 < views.flipped.sum() < views.flipped.numel()


def test_locals_can_be_left_out(grid, heads):
    full = maker(grid).make(heads, PLACES, step=0)
    without = maker(grid).make(heads, PLACES, step=0, with_locals=False)
    assert without.locals_hu.shape == (4, 0, 8, 8, 8)
    assert torch.equal(full.globals_hu, without.globals_hu)


def test_the_shape_of_global_crops_changes_with_the_step(grid, heads):
    make = maker(grid).make
    shapes = {make(heads[:1], PLACES[:1], step).globals_hu.shape[2:] for step in range(12)}
    assert len(shapes) > 3


@pytest.mark.parametrize(
    ("crop", "patch", "word"),
    [
        (CropConfig(global_fraction=(0.75, 1.25)), PATCH, "within 0..1"),
        (CropConfig(local_mm=500.0), PATCH, "larger than the field of view"),
        (CropConfig(local_mm=5.0), PATCH, "smaller than a patch of"),
        (CropConfig(global_fraction=(0.9, 0.95)), PATCH, "no multiple"),
        (CropConfig(local_mm=64), (5, 5, 5), "do not divide"),
    ],
)
def test_contradictions_are_usage_errors(grid, crop, patch, word):
    with pytest.raises(UsageError, match=word):
        ViewMaker(ViewsConfig(crop=crop), grid, patch, select, seed=0)


def test_the_size_of_local_crops_matters_only_where_there_are_some(grid):
    crop = CropConfig(n_local=0, local_mm=500.0)
    ViewMaker(ViewsConfig(crop=crop), grid, PATCH, select, seed=0)


def test_labels_follow_a_flip():
    labels = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]])
    swapped = swap_lateralised(labels, torch.tensor([True, False]), [(0, 1)])
    assert swapped.tolist() == [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]]
