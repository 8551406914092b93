"""The cube of FM-CT's chain is that of MONAI's transforms, and its HU have a true affine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headct.errors import Refusal, UsageError
from headct.volume.canonical import to_canonical
from headct.volume.preprocessing import PRESETS, Preprocessing, Stretch
from headct.volume.stretched import to_channels
from headct.volume.volume import Volume
from headct.volume.window import WINDOWS

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="no monai here")


def preprocessing(**values: Any) -> Preprocessing:
    """The mode `fmct` on a smaller cube."""
    stretch = Stretch(windows=WINDOWS, **values)
    return Preprocessing(shape_zyx=(24, 24, 24), spacing_mm_zyx=(8.0,) * 3, stretched=stretch)


def blob(affine: np.ndarray, shape: tuple[int, int, int] = (14, 60, 52)) -> Volume:
    """A ball of bone around brain with rough edges, off the middle, in air."""
    rng = np.random.default_rng(3)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) + 0.0
    r = np.linalg.norm((index - np.array(shape) * 0.55) * [4.0, 1.0, 1.1], axis=-1)
    hu = np.where(r < 16, 35.0, np.where(r < 20, 900.0, -1000.0))
    return Volume(np.rint(hu + rng.normal(0, 12, shape)).astype(np.int16), affine)


def straight() -> np.ndarray:
    affine = np.diag([4.0, 0.9, 1.1, 1.0])
    affine[:3, 3] = (-20.0, 3.0, 11.0)
    return affine


def flipped() -> np.ndarray:
    return straight() @ np.diag([1.0, -1.0, -1.0, 1.0])


def permuted() -> np.ndarray:
    return straight()[[1, 0, 2, 3]]


def oblique() -> np.ndarray:
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ straight()


def tilted() -> np.ndarray:
    affine = straight()
    affine[1, 0] = 1.2
    return affine


def already_1mm() -> np.ndarray:
    return np.diag([4.0, 1.0005, 1.0, 1.0])


def monai_chain(volume: Volume, resize: str, above: float) -> np.ndarray:
    import torch
    from monai import transforms
    from monai.data import MetaTensor

    data = torch.as_tensor(volume.hu.T.astype(np.float32))[None]
    found = MetaTensor(data, affine=torch.as_tensor(volume.affine_nifti))
    found = transforms.Orientation(axcodes="RAS", labels=None)(found)
    found = transforms.Spacing(pixdim=(1.0, 1.0, 1.0), mode=3)(found)
    found = transforms.CropForeground(select_fn=lambda x: x > above)(found)
    stretch = transforms.Resize((24, 24, 24), mode="area" if resize == "area" else "trilinear")
    channels = []
    for window in WINDOWS:
        low, high = window.level_hu - window.width_hu / 2, window.level_hu + window.width_hu / 2
        scale = transforms.ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)
        channels.append(np.asarray(stretch(scale(found)))[0].T)
    return np.stack(channels)


@needs_monai
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("affine", [straight, flipped, permuted, oblique, tilted, already_1mm])
@pytest.mark.parametrize(("resize", "above"), [("area", 0.0), ("linear", -500.0)])
def test_channels_are_those_of_monai(
    affine: Callable[[], np.ndarray], resize: str, above: float
) -> None:
    volume = blob(affine())
    wanted = monai_chain(volume, resize, above)
    found = to_channels(volume, preprocessing(resize=resize, foreground_above_hu=above))
    assert wanted.std() > 0.1
    assert np.abs(found - wanted).mean(axis=(1, 2, 3)).max() < 1e-5


def test_channels_of_a_uniform_head_are_its_window_values() -> None:
    hu = np.full((30, 40, 40), -1000, np.int16)
    hu[5:25, 10:30, 10:30] = 60
    channels = to_channels(
        Volume(hu, np.eye(4)), preprocessing(scaled_to=(-1.0, 1.0), foreground_above_hu=0.0)
    )
    assert channels.shape == (3, 24, 24, 24)
    for channel, window in zip(channels, WINDOWS, strict=True):
        np.testing.assert_allclose(channel, window.apply(np.float32(60)), atol=1e-6)


@pytest.mark.parametrize("affine", [straight, oblique, tilted])
def test_the_cube_in_hu_knows_where_it_was(affine: Callable[[], np.ndarray]) -> None:
    volume = blob(affine())
    preset = PRESETS["fmct-hu"]
    cube = to_canonical(volume, preset)
    assert cube.hu.shape == (96, 96, 96)
    assert cube.hu.dtype == np.int16

    def centre(of: Volume) -> np.ndarray:
        inside = np.argwhere(of.hu > 400).mean(axis=0)
        return np.asarray((of.affine_zyx @ [*inside, 1.0])[:3])

    np.testing.assert_allclose(centre(cube), centre(volume), atol=0.4)
    assert np.ptp(cube.spacing_mm_zyx) > 0.02, "a cube of no head that is no cube"


def test_windows_before_the_stretch_are_no_volume() -> None:
    volume = blob(straight())
    with pytest.raises(UsageError, match="no HU") as caught:
        to_canonical(volume, PRESETS["fmct"])
    assert "fmct-hu" in caught.value.remedy
    with pytest.raises(UsageError, match="no windows"):
        to_channels(volume, PRESETS["fmct-hu"])


def test_nothing_above_the_threshold_is_refused() -> None:
    air = Volume(np.full((20, 20, 20), -1000, np.int16), np.eye(4))
    with pytest.raises(Refusal) as caught:
        to_channels(air, PRESETS["fmct"])
    assert caught.value.code == "not-head"


def test_stretching_has_its_own_hash_and_keeps_those_of_the_others() -> None:
    hashes = {name: preset.hash for name, preset in PRESETS.items()}
    assert len(set(hashes.values())) == len(hashes)
    again = Preprocessing.model_validate(PRESETS["fmct"].model_dump(mode="json", exclude={"hash"}))
    assert again.hash == hashes["fmct"]
    with pytest.raises(ValueError, match="scanner's pose"):
        Preprocessing(
            shape_zyx=(8, 8, 8), spacing_mm_zyx=(1, 1, 1), pose="aligned", stretched=Stretch()
        )
