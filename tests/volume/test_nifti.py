from __future__ import annotations

import contextlib
import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.dicom.reasons import Reason
from headct.errors import Refusal
from headct.volume.nifti import read_nifti, write_nifti
from headct.volume.volume import AIR_HU, Volume

AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])
LANDMARK_RAS = np.array([-8.0, 15.0, 21.0])


@pytest.fixture
def hu_xyz():
    hu = np.full((12, 14, 16), -1000, np.int16)
    hu[2:-2, 2:-2, 2:-2] = 40
    hu[4, 8, 9] = 900
    return hu


def save(path, values, affine=AFFINE, edit=None, kind=nib.Nifti1Image):
    image = kind(values, affine)
    image.header.set_xyzt_units("mm")
    if edit is not None:
        edit(image)
    nib.save(image, path)
    return path


def code_of(path) -> str:
    with pytest.raises(Refusal) as refused:
        read_nifti(path)
    return refused.value.code


def landmark(volume: Volume) -> np.ndarray:
    """RAS mm of the brightest voxel."""
    index = np.unravel_index(volume.hu.argmax(), volume.hu.shape)
    return (volume.affine_zyx @ [*index, 1])[2::-1]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (0, 2)])
def test_any_axis_order_keeps_the_landmark(tmp_path, hu_xyz, order, flips):
    affine = AFFINE.copy()
    affine[:3, 3] = LANDMARK_RAS - AFFINE[:3, :3] @ [4, 8, 9]
    values = hu_xyz
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
        affine[:3, axis] *= -1
        values = np.flip(values, axis)
    affine[:, :3] = affine[:, :3][:, order]
    volume = read_nifti(save(tmp_path / "a.nii.gz", values.transpose(order), affine))
    assert np.allclose(landmark(volume), LANDMARK_RAS)
    assert not volume.flags


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_round_trip_keeps_values_and_a_sheared_affine(tmp_path, hu_xyz, name):
    affine = np.diag([3.0, 2.0, 1.0, 1.0])
    affine[1, 0] = 0.7
    volume = Volume(hu_xyz.T, affine)
    write_nifti(tmp_path / name, volume)
    again = read_nifti(tmp_path / name)
    assert np.array_equal(again.hu, volume.hu)
    assert np.allclose(again.affine_zyx, affine)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_float_scaled_and_padded_values_become_hu(tmp_path, hu_xyz):
    values = hu_xyz.astype(np.float32) + 0.2
    values[0] = -3024
    volume = read_nifti(save(tmp_path / "a.nii.gz", values))
    assert volume.hu.dtype == np.int16
    assert volume.hu.min() == AIR_HU
    assert volume.hu[8, 6, 6] == 40


def test_slope_and_intercept_are_applied(tmp_path, hu_xyz):
    stored = ((hu_xyz.astype(np.int32) + 1024) * 2).astype(np.int16)
    volume = read_nifti(_with_raw_slope(tmp_path / "a.nii", stored, 0.5, -1024.0))
    assert np.array_equal(volume.hu, hu_xyz.T)


def test_slope_zero_means_no_scale(tmp_path, hu_xyz):
    volume = read_nifti(_with_raw_slope(tmp_path / "a.nii", hu_xyz, 0.0, 7.0))
    assert np.array_equal(volume.hu, hu_xyz.T)


def _with_raw_slope(path, stored, slope, inter):
    save(path, stored)
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(bytes(data))
    return path


def test_big_endian_is_read(tmp_path, hu_xyz):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_data_shape(hu_xyz.shape)
    nib.save(nib.Nifti1Image(hu_xyz, AFFINE, header), tmp_path / "a.nii")
    assert np.array_equal(read_nifti(tmp_path / "a.nii").hu, hu_xyz.T)


def test_units_of_metres_and_microns_become_mm(tmp_path, hu_xyz):
    affine = np.diag([0.002, 0.002, 0.003, 1.0])
    path = save(
        tmp_path / "a.nii", hu_xyz, affine, lambda image: image.header.set_xyzt_units("meter")
    )
    assert np.allclose(read_nifti(path).spacing_mm_zyx, (3, 2, 2))


def test_where_sform_and_qform_disagree_sform_holds_with_a_flag(tmp_path, hu_xyz):
    def disagree(image):
        image.set_sform(AFFINE, code=1)
        image.set_qform(np.diag([-2.0, 2.5, 3.0, 1.0]), code=1)

    volume = read_nifti(save(tmp_path / "a.nii", hu_xyz, AFFINE, disagree))
    assert volume.flags == (Reason.FRAME_CONFLICT,)
    assert np.allclose(volume.affine_nifti, AFFINE)


def without_frames(path, *offsets):
    """Set the codes of sform (byte 254) or qform (252) to zero: nibabel does not write that."""
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset : offset + 2] = bytes(2)
    path.write_bytes(bytes(data))
    return path


def test_without_sform_the_qform_holds(tmp_path, hu_xyz):
    turned = np.array([[0, -2.5, 0, 1], [2.0, 0, 0, 2], [0, 0, 3.0, 3], [0, 0, 0, 1]])
    path = save(tmp_path / "a.nii", hu_xyz, turned, lambda image: image.set_qform(turned, code=1))
    volume = read_nifti(without_frames(path, 254))
    assert not volume.flags
    assert np.allclose(volume.affine_nifti, turned, atol=1e-5)


def test_with_neither_the_axes_are_taken_as_ras_with_a_flag(tmp_path, hu_xyz):
    volume = read_nifti(without_frames(save(tmp_path / "a.nii", hu_xyz), 252, 254))
    assert volume.flags == (Reason.NO_FRAME,)
    assert np.allclose(volume.affine_nifti, AFFINE)


def with_nan(hu):
    hu = hu.astype(np.float32)
    hu[3, 3, 3] = np.nan
    return hu


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_nan, Reason.NOT_FINITE),
        (lambda hu: hu.astype(np.float32) * np.inf, Reason.NOT_FINITE),
        (lambda hu: np.stack([hu, hu], -1), Reason.NOT_3D),
        (lambda hu: hu[:, :, 0], Reason.NOT_3D),
        (lambda hu: hu[:, :, :1], Reason.SINGLE_SLICE),
        (lambda hu: np.zeros(hu.shape, RGB), Reason.COLOUR),
        (lambda hu: (hu > 0).astype(np.uint8), Reason.NOT_HU),
        (lambda hu: ((hu + 1024.0) / 4000).astype(np.float32), Reason.NOT_HU),
        (lambda hu: (hu + 1024).astype(np.int16), Reason.NOT_HU),
        (lambda hu: hu.astype(np.complex64), Reason.NOT_HU),
        (lambda hu: np.full_like(hu, -1000), Reason.CONSTANT_IMAGE),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_no_ct_are_refused(tmp_path, hu_xyz, change, reason):
    assert code_of(save(tmp_path / "a.nii.gz", change(hu_xyz))) == reason


def test_one_volume_with_a_fourth_axis_of_one_is_taken(tmp_path, hu_xyz):
    volume = read_nifti(save(tmp_path / "a.nii", hu_xyz[..., None]))
    assert volume.hu.shape == hu_xyz.shape[::-1]


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([2.0, 0.0, 3.0, 1.0]), Reason.SINGULAR_AFFINE),
        (
            np.array([[2.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]),
            Reason.SINGULAR_AFFINE,
        ),
        (np.diag([2.0, 2.0, np.nan, 1.0]), Reason.BAD_GEOMETRY),
        (np.diag([2.0, 2.0, 500.0, 1.0]), Reason.BAD_GEOMETRY),
    ],
)
def test_affines_that_are_no_geometry_are_refused(tmp_path, hu_xyz, affine, reason):
    def put(image):
        image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
        image.header["sform_code"] = 1

    image = nib.Nifti1Image(hu_xyz, None)
    put(image)
    path = tmp_path / "a.nii"
    path.write_bytes(image.to_bytes())
    assert code_of(path) == reason


@pytest.mark.parametrize("keep", [0, 100, 200, -60])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_files_are_refused(tmp_path, hu_xyz, name, keep):
    path = save(tmp_path / name, hu_xyz)
    path.write_bytes(path.read_bytes()[:keep])
    assert code_of(path) == (Reason.TRUNCATED if keep else Reason.EMPTY_FILE)


def test_flipped_bytes_in_a_gzip_are_noticed(tmp_path, hu_xyz):
    path = save(tmp_path / "a.nii.gz", hu_xyz)
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))
    assert code_of(path) == Reason.UNREADABLE


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_names_fewer_slices_than_there_are_is_refused(tmp_path, hu_xyz, name):
    data = bytearray(nib.Nifti1Image(hu_xyz, AFFINE).to_bytes())
    data[46:48] = (hu_xyz.shape[2] - 1).to_bytes(2, "little")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert code_of(tmp_path / name) == Reason.UNREADABLE


def test_a_few_bytes_behind_the_voxels_are_padding(tmp_path, hu_xyz):
    data = nib.Nifti1Image(hu_xyz, AFFINE).to_bytes() + bytes(100)
    (tmp_path / "a.nii").write_bytes(data)
    assert (hu_xyz == read_nifti(tmp_path / "a.nii").hu.T).all()


def test_a_header_bomb_is_refused_from_the_header(tmp_path, hu_xyz):
    path = save(tmp_path / "a.nii", hu_xyz)
    data = bytearray(path.read_bytes())
    data[40:48] = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(data)))
    assert code_of(tmp_path / "b.nii.gz") == Reason.TOO_LARGE


def test_a_text_file_called_nifti_is_refused_without_quoting_it(tmp_path):
    (tmp_path / "a.nii").write_text("PLANTED " * 100)
    with pytest.raises(Refusal) as refused:
        read_nifti(tmp_path / "a.nii")
    assert "PLANTED" not in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 360), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_mutated_header_never_crashes(tmp_path_factory, edits):
    hu = np.full((9, 9, 9), -1000, np.int16)
    hu[3:6] = 40
    data = bytearray(nib.Nifti1Image(hu, AFFINE).to_bytes())
    for place, value in edits:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "mutated.nii"
    path.write_bytes(bytes(data))
    with contextlib.suppress(Refusal):
        read_nifti(path)
