"""Real scans: right HU, right way round."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

import headct.volume.read as reading
from headct.dicom.reasons import Reason
from headct.errors import Refusal, UsageError
from headct.volume.read import read_series
from headct.volume.volume import AIR_HU, Volume

SCANS = {
    "headsq_ge8800_hu": ((93, 64, 64), (1.5, 3.2, 3.2), ()),
    "siemens_anthropomorphic_head_2mm": ((81, 512, 512), (2.0, 0.9766, 0.9766), ()),
    "philips_skull_phantom_5mm": ((28, 512, 512), (5.0, 0.4512, 0.4512), ()),
    "philips_skull_phantom_tilt_neg18p5": ((54, 512, 512), (2.5, 0.4824, 0.4824), ("gantry-tilt",)),
    "vhp_head_ct_quantised16.nii.gz": ((204, 256, 256), (1.0, 1.0, 1.0), ()),
    "scct_average_template_hu_2mm.nii.gz": ((91, 109, 91), (2.0, 2.0, 2.0), ()),
}
HUMAN = ("headsq_ge8800_hu", "vhp_head_ct_quantised16.nii.gz")


def world_mm(volume: Volume, mask) -> np.ndarray:
    """(S, A, R) mm of the voxels of a mask, [3 n]."""
    index = np.array(np.nonzero(mask))
    return volume.affine_zyx[:3, :3] @ index + volume.affine_zyx[:3, 3:]


@pytest.mark.parametrize(("name", "truth"), SCANS.items())
def test_shape_spacing_and_air_of_real_scans(real_data, name, truth):
    volume = read_series(real_data / "real" / name)
    shape_zyx, spacing_mm_zyx, flags = truth
    assert volume.shape_zyx == shape_zyx
    assert np.allclose(volume.spacing_mm_zyx, spacing_mm_zyx, atol=1e-3)
    assert volume.flags == flags
    assert volume.hu.dtype == np.int16
    assert -1024 <= np.percentile(volume.hu, 5) < -850


@pytest.mark.parametrize("name", HUMAN)
def test_nose_and_sinuses_lie_in_front_and_low(real_data, name):
    volume = read_series(real_data / "real" / name)
    bone_superior, bone_anterior, _ = np.median(world_mm(volume, volume.hu > 300), axis=1)
    air_superior, air_anterior, _ = np.median(world_mm(volume, _inner_air(volume)), axis=1)
    assert air_anterior > bone_anterior + 10
    if name.startswith("vhp"):  # the other one ends at mid-brain
        assert air_superior < bone_superior


@pytest.mark.parametrize(
    "name", ["philips_skull_phantom_5mm", "philips_skull_phantom_tilt_neg18p5"]
)
def test_the_skull_narrows_upwards(real_data, name):
    volume = read_series(real_data / "real" / name)
    superior, _, right = world_mm(volume, volume.hu > 500)
    low, high = (np.abs(superior - np.percentile(superior, q)) < 5 for q in (10, 99.5))
    assert np.ptp(right[high]) < 0.8 * np.ptp(right[low])


def test_the_couch_is_behind_the_head(real_data):
    volume = read_series(real_data / "real/siemens_anthropomorphic_head_2mm")
    head = volume.hu[40] > 600
    couch = ((volume.hu[40] > -700) & (volume.hu[40] < -100)).sum(axis=1) > 300
    anterior = volume.affine_zyx[1, 3] + volume.affine_zyx[1, 1] * np.arange(512)
    assert anterior[couch].max() < np.median(anterior[head.any(axis=1)])
    assert volume.affine_zyx[0, 0] > 0


def _inner_air(volume: Volume) -> np.ndarray:
    """Air that the outside does not reach within its slice."""
    from scipy import ndimage

    filled = np.stack([ndimage.binary_fill_holes(plane > -400) for plane in volume.hu])
    return filled & (volume.hu < -500)


@pytest.mark.parametrize("name", [name for name in SCANS if "." not in name and "tilt" not in name])
def test_a_second_reader_finds_the_same_hu_at_the_same_place(real_data, name):
    volume = read_series(real_data / "real" / name)
    reader = SimpleITK.ImageSeriesReader()
    files = reader.GetGDCMSeriesFileNames(str(real_data / "real" / name))
    reader.SetFileNames(files)
    image = reader.Execute()
    index = np.random.default_rng(0).integers(0, volume.shape_zyx, (300, 3))
    superior, anterior, right, _ = volume.affine_zyx @ np.c_[index, np.ones(300)].T
    there = [
        max(image.GetPixel(image.TransformPhysicalPointToIndex(point)), AIR_HU)
        for point in zip(-right, -anterior, superior, strict=True)
    ]
    assert np.array_equal(volume.hu[tuple(index.T)], there)


def test_brain_is_at_its_ct_number(real_data):
    template = read_series(real_data / "real/scct_average_template_hu_2mm.nii.gz")
    assert 20 < np.median(template.hu[56:64, 56:64, 56:64]) < 40
    siemens = read_series(real_data / "real/siemens_anthropomorphic_head_2mm")
    assert 20 < np.median(siemens.hu[40:50, 200:230, 240:270]) < 60


def test_tilt_is_undone_by_the_affine(real_data):
    """The plate of the same phantom has the same right angles with and without tilt."""
    tilted = read_series(real_data / "real/philips_skull_phantom_tilt_neg18p5")
    columns = tilted.affine_zyx[:3, :3] / np.linalg.norm(tilted.affine_zyx[:3, :3], axis=0)
    assert np.degrees(np.arcsin(abs(columns[:, 0] @ columns[:, 1]))) == pytest.approx(18.5, abs=0.1)
    assert np.linalg.det(tilted.affine_zyx[:3, :3]) == pytest.approx(2.3708 * 0.48242**2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("real/scct_average_template_cormack_2mm.nii", Reason.NOT_HU),
        ("odd_dicom/nifti/CT_pitch_uint8_nonHU.nii.gz", Reason.NOT_HU),
        ("odd_dicom/philips/localizer_I10", Reason.LOCALIZER),
        ("odd_dicom/pydicom/CT_small.dcm", Reason.SINGLE_SLICE),
        ("odd_dicom/pydicom/MR_truncated.dcm", Reason.TRUNCATED),
        ("odd_dicom/philips", Reason.NO_SERIES),
    ],
)
def test_what_cannot_be_read_says_why(real_data, name, code):
    with pytest.raises(Refusal) as refused:
        read_series(real_data / name)
    assert refused.value.code == code


def test_several_series_need_a_choice(real_data):
    folder = real_data / "odd_dicom/derived_headsq/duplicate_positions"
    volume = read_series(folder, series=1)
    assert volume.shape_zyx == (93, 64, 64)
    with pytest.raises(UsageError):
        read_series(folder, series=2)


def test_two_series_are_counted_and_told_apart(real_data):
    with pytest.raises(Refusal) as refused:
        read_series(real_data / "real")
    assert refused.value.code == Reason.SEVERAL_SERIES
    assert "7 series" in refused.value.message
    assert "series=" in refused.value.remedy
    assert read_series(real_data / "real", series=1).shape_zyx == (93, 64, 64)


def test_an_empty_folder_and_a_missing_path(tmp_path):
    with pytest.raises(Refusal) as refused:
        read_series(tmp_path)
    assert refused.value.code == Reason.NO_SERIES
    with pytest.raises(UsageError):
        read_series(tmp_path / "nowhere")


def test_provenance_names_no_one(real_data):
    volume = read_series(real_data / "real/philips_skull_phantom_5mm")
    assert volume.provenance[0]["step"] == "read"
    assert "PLASTIC" not in repr(volume.provenance)
    assert reading.__doc__
