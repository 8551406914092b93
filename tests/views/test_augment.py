import numpy as np
import pytest
import torch

from headct.views.augment import (
    AugmentConfig,
    Cupping,
    Erase,
    Gain,
    MotionGhost,
    SkullBase,
)
from headct.views.cut import Placement, apply_axes
from headct.views.draws import Draws, generator
from headct.views.noise import Noise, box, boxes
from headct.views.spread import Kernel, SliceThickness

GRID, SPACING = (24, 32, 24), (4.0, 4.0, 4.0)
CPU = torch.device("cpu")


def at(n: int) -> Placement:
    return Placement(
        centre_voxel=((torch.tensor(GRID) - 1) / 2).repeat(n, 1),
        step=torch.ones(n, 3),
        rotation=torch.eye(3).repeat(n, 1, 1),
        shape_zyx=GRID,
        spacing_mm_zyx=SPACING,
        source_shape_zyx=GRID,
    )


OFF = {"gain": {"gain_sd": 0, "offset_sd_hu": 0}} | {
    name: {"probability": 0} for name in AugmentConfig.model_fields if name != "gain"
}


def draw(augmentation, n: int) -> dict[str, torch.Tensor]:
    values = augmentation.draw(Draws([generator(0, "views", 0, 0)]), n)
    return {name: torch.from_numpy(value) for name, value in values.items()}


def water(n: int) -> torch.Tensor:
    return torch.zeros(n, *GRID)


def applied(augmentation, hu: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:
    """One augmentation and no other, in place."""
    (name,) = (
        name
        for name, field in AugmentConfig.model_fields.items()
        if field.annotation is type(augmentation)
    )
    config = AugmentConfig.model_validate(OFF | {name: augmentation})
    bank = config.noise.bank(GRID, SPACING)
    return config.apply(hu, draw(config, len(hu)) | drawn, at(len(hu)), bank)


def test_gain_and_offset_are_calibration_errors():
    drawn = draw(Gain(), 500)
    hu = applied(Gain(), torch.full((500, 1, 1, 1), 100.0).expand(-1, *GRID).clone(), drawn)
    torch.testing.assert_close(hu[:, 0, 0, 0], 100 * drawn["gain"] + drawn["offset_hu"])
    assert drawn["gain"].std() == pytest.approx(0.03, rel=0.15)
    assert drawn["offset_hu"].std() == pytest.approx(3.0, rel=0.15)


def test_probability_decides_how_many_views():
    drawn = draw(Noise(probability=0.8), 1000)
    assert (drawn["noise_sd_hu"] != 0).float().mean() == pytest.approx(0.8, abs=0.04)
    assert drawn["noise_sd_hu"].abs().max() <= 8


@pytest.mark.parametrize("augmentation", [Gain(), Cupping(), SkullBase(probability=0.6), Noise()])
def test_all_views_at_once_are_the_views_one_by_one(augmentation, monkeypatch):
    drawn = draw(augmentation, 6)
    hu = 1000 * torch.rand(6, *GRID, generator=torch.Generator().manual_seed(0))
    one_by_one = applied(augmentation, hu.clone(), drawn)
    monkeypatch.setattr("headct.views.response.one_by_one", lambda _: False)  # as on a GPU
    at_once = applied(augmentation, hu.clone(), drawn)
    assert not torch.equal(one_by_one, hu)
    torch.testing.assert_close(at_once, one_by_one)


def test_nothing_is_below_air():
    strong = {"noise_sd_hu": torch.tensor([8.0])}
    assert applied(Noise(), water(1) - 1020, strong).min() == -1024


def test_boxes_of_the_bank_are_its_slices():
    bank = torch.arange(2 * 4 * 5 * 6.0).view(2, 4, 5, 6)
    first = bank[[1, 0], [1, 0], [0, 3], [2, 2]].long()  # the bank counts its voxels
    expected = torch.stack([bank[1, 1:4, 0:2, 2:6], bank[0, 0:3, 3:5, 2:6]])
    assert torch.equal(boxes(bank, first, (3, 2, 4)), expected)
    for place, one in zip(first.tolist(), expected, strict=True):
        assert torch.equal(box(bank, place, (3, 2, 4)), one)


def test_noise_lies_within_the_bank():
    bank = torch.zeros(2, 36, 48, 36)
    ends = torch.tensor([0.0, 1.0])
    drawn = {"noise_smooth": ends, "noise_place": ends[:, None].expand(2, 3)}
    first = Noise().first(drawn, at(2), bank)
    last = np.ravel_multi_index((1, 12, 16, 12), bank.shape)
    assert first.tolist() == [0, last]


def test_switched_off_nothing_changes():
    config = AugmentConfig.model_validate(OFF)
    drawn, hu = draw(config, 4), torch.randn(4, *GRID)
    assert config.spread(drawn, at(4), CPU) == [None, None, None]
    bank = config.noise.bank(GRID, SPACING)
    assert torch.equal(config.apply(hu.clone(), drawn, at(4), bank), hu)


def test_kernels_keep_the_mean_and_change_the_edge():
    hu = torch.zeros(2, 1, 1, 40)
    hu[..., 20:] = 50.0
    drawn = {
        "kernel_sigma_mm": torch.tensor([1.0, 1.0]),
        "kernel_amount": torch.tensor([-1.0, 0.6]),
    }
    operator = Kernel().operator(drawn, 40, 1.0, CPU)
    torch.testing.assert_close(operator.sum(-1), torch.ones(2, 40))
    blurred, sharp = apply_axes(hu, (None, None, operator))[:, 0, 0]
    assert 0 < blurred[19] < blurred[20] < 50
    assert sharp.max() > 52
    assert sharp.min() < -2


def test_thick_slices_average_along_z():
    drawn = {"slice_mm": torch.tensor([8.0, 0.0]), "slice_phase": torch.tensor([0.3, 0.3])}
    operator = SliceThickness().operator(drawn, 60, 1.0, CPU)
    assert torch.equal(operator[1], torch.eye(60))
    assert torch.allclose(operator.sum(-1), torch.ones(2, 60), atol=1e-5)
    spike = operator[0, :, 30]
    assert spike.max() == pytest.approx(1 / 8, rel=0.05)
    assert spike.sum() == pytest.approx(1.0, rel=0.3)
    middle = (spike * torch.arange(60)).sum() / spike.sum()
    assert middle == pytest.approx(30, abs=4.5)


def test_thick_slices_keep_what_is_constant_at_every_phase():
    phases = torch.linspace(0.0, 1.0, 41)  # at some the first slice lies beyond the view
    drawn = {"slice_mm": torch.full((41,), 8.0), "slice_phase": phases}
    operator = SliceThickness().operator(drawn, 60, 1.0, CPU)
    torch.testing.assert_close(operator.sum(-1), torch.ones(41, 60))


def test_slices_thinner_than_voxels_do_nothing():
    drawn = {"slice_mm": torch.tensor([2.5]), "slice_phase": torch.tensor([0.1])}
    assert SliceThickness().operator(drawn, 20, 3.3, CPU) is None


def test_cupping_is_a_parabola_in_the_plane():
    drawn = {"cupping_hu": torch.tensor([6.0, 0.0])}
    hu = applied(Cupping(), water(2), drawn)
    assert (hu[1] == 0).all()
    assert torch.equal(hu[0, 0], hu[0, 20])
    r = torch.tensor(10.0) / 75.0
    mid_y = (hu[0, 0, 15] + hu[0, 0, 16]) / 2
    assert mid_y[14] == pytest.approx(float(6 * (r**2 - 0.5)), abs=0.02)
    assert hu.max() <= 3.0


def test_the_band_lies_at_the_skull_base_and_the_midline():
    drawn = {"band_hu": torch.tensor([-10.0]), "band_below_top_mm": torch.tensor([70.0])}
    hu = applied(SkullBase(), water(1), drawn)[0]
    z, _, x = np.unravel_index(int(hu.argmin()), GRID)
    assert abs(float(at(1).below_top_mm()[0, z]) - 70) <= 2
    assert x in (11, 12)
    assert hu.min() == pytest.approx(-10, abs=0.8)


def test_noise_has_its_strength_and_grows_at_the_skull_base():
    noise = Noise(sd_hu=8)
    bank = noise.bank(GRID, SPACING)
    assert bank.std(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    drawn = {
        "noise_sd_hu": torch.tensor([5.0, -5.0]),
        "noise_smooth": torch.tensor([0.0, 1.0]),
        "noise_place": torch.tensor([[0.2, 0.5, 0.9], [0.0, 0.99, 0.4]]),
    }
    white, smooth = applied(noise, water(2), drawn)
    assert white[-8:].std() == pytest.approx(5.0, rel=0.08)
    assert white[:2].std() > 1.1 * white[-8:].std()  # z counts from the base to the vertex

    def neighbours(hu: torch.Tensor) -> float:
        return float(
            torch.corrcoef(torch.stack([hu[..., 1:].flatten(), hu[..., :-1].flatten()]))[0, 1]
        )

    assert abs(neighbours(white)) < 0.05
    assert neighbours(smooth) > 0.4


def test_a_ghost_mixes_a_shifted_copy_into_a_band():
    hu = water(2)
    hu[:, :, 16, 12] = 100.0
    drawn = {
        "ghost_weight": torch.tensor([0.25, 0.0]),
        "ghost_shift_mm": torch.tensor([[0.0, 4.0], [0.0, 4.0]]),
        "ghost_height_mm": torch.tensor([24.0, 24.0]),
        "ghost_place": torch.tensor([0.5, 0.5]),
    }
    ghosted = MotionGhost().apply(hu.clone(), drawn, at(2))
    assert torch.equal(ghosted[1], hu[1])
    assert ghosted[0, 12, 16, 12] == pytest.approx(75)
    assert ghosted[0, 12, 16, 11] == pytest.approx(25)
    assert torch.equal(ghosted[0, 0], hu[0, 0])


def test_erase_takes_the_table_and_leaves_the_head():
    hu = torch.full((2, 24, 48, 24), -1000.0)
    y, x = torch.meshgrid(torch.arange(48.0) - 23.5, torch.arange(24.0) - 11.5, indexing="ij")
    head = ((y / 20) ** 2 + (x / 10) ** 2 < 0.8).expand(24, -1, -1)
    hu[:, head] = 30.0
    hu[:, :, 1] = -200.0  # a table: one thin sheet behind the head
    place = at(2)
    place = Placement(
        **{
            **place.__dict__,
            "shape_zyx": (24, 48, 24),
            "source_shape_zyx": (24, 48, 24),
            "centre_voxel": torch.tensor([[11.5, 23.5, 11.5]]).repeat(2, 1),
        }
    )
    erased = Erase().apply(hu.clone(), {"erase": torch.tensor([1.0, 0.0])}, place)
    assert (erased[0, :, 1] == -1024).all()
    assert (erased[0, head] == 30).all()
    assert torch.equal(erased[1], hu[1])


@pytest.mark.parametrize("augmentation", [Erase(probability=0.5), MotionGhost(probability=0.5)])
def test_chosen_views_at_once_are_the_views_one_by_one(augmentation, monkeypatch):
    drawn = draw(augmentation, 6)
    sparse = torch.rand(6, *GRID, generator=torch.Generator().manual_seed(0)) ** 6
    before = 3000 * sparse - 1024
    one_by_one = augmentation.apply(before.clone(), drawn, at(6))

    def by_number(amount: torch.Tensor, _: torch.device) -> list[torch.Tensor]:  # as on a GPU
        return [amount.nonzero()[:, 0]]

    monkeypatch.setattr("headct.views.augment.chosen", by_number)
    at_once = augmentation.apply(before.clone(), drawn, at(6))
    assert not torch.equal(one_by_one, before)
    torch.testing.assert_close(at_once, one_by_one)
