"""Every odd file ends in the state that its publisher's table names."""

from __future__ import annotations

import numpy as np
import pytest

from headct.dicom.header import read_header
from headct.dicom.index import index_paths
from headct.dicom.pixels import read_stored, to_hu
from headct.dicom.reasons import Reason
from headct.dicom.series import read_stacks
from headct.errors import Refusal

CORNERSTONE = "cornerstone/CTImage.dcm_"
EXPECTED = {
    "wg04/CT2_UNC": Reason.SINGLE_SLICE,
    "wg04/CT2_J2KR": Reason.SINGLE_SLICE,
    "wg04/CT2_RLE": Reason.SINGLE_SLICE,
    "wg04/CT2_JPLL": Reason.SINGLE_SLICE,
    CORNERSTONE + "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm": Reason.SINGLE_SLICE,
    CORNERSTONE + "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57.dcm": Reason.SINGLE_SLICE,
    CORNERSTONE + "JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm": Reason.SINGLE_SLICE,
    "pydicom/CT_small.dcm": Reason.SINGLE_SLICE,
    "pydicom/MR_small.dcm": Reason.NOT_CT,
    "pydicom/MR_truncated.dcm": Reason.TRUNCATED,
    "pydicom/no_meta.dcm": Reason.UNREADABLE,
    "pydicom/meta_missing_tsyntax.dcm": Reason.NO_TRANSFER_SYNTAX,
    "pydicom/rtstruct.dcm": Reason.NOT_IMAGE,
    "pydicom/rtplan.dcm": Reason.NOT_IMAGE,
    "pydicom/test-SR.dcm": Reason.NOT_IMAGE,
    "pydicom/SC_rgb_jpeg_dcmtk.dcm": Reason.SECONDARY_CAPTURE,
    "pydicom/image_dfl.dcm": Reason.NOT_CT,
    "pydicom/liver_1frame.dcm": Reason.NOT_CT,
    "pydicom/eCT_Supplemental.dcm": Reason.DERIVED_IMAGE,
    "pydicom/explicit_VR-UN.dcm": Reason.SINGLE_SLICE,
    "pydicom/J2K_pixelrep_mismatch_deid.dcm": Reason.SINGLE_SLICE,
    "icometrix/ct_missing_slice": Reason.MISSING_SLICES,
    "icometrix/ct_gantry_tilt": Reason.TOO_FEW_SLICES,
    "fodicom/FreezePattern.dcm": Reason.SECONDARY_CAPTURE,
    "fodicom/GH178.dcm": Reason.NO_PIXEL_DATA,
    "philips/localizer_I10": Reason.LOCALIZER,
    "philips/exam_summary_I10": Reason.SECONDARY_CAPTURE,
    "philips/exam_summary_I50": Reason.SECONDARY_CAPTURE,
    "philips/exam_summary_I60": Reason.SECONDARY_CAPTURE,
    "derived_headsq/missing_slices": Reason.MISSING_SLICES,
    "derived_headsq/duplicate_positions": "stack",
    "derived_headsq/no_rescale_tags": Reason.NO_RESCALE,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_every_odd_file_ends_in_its_state(real_data, name, expected):
    path = real_data / "odd_dicom" / name
    index = index_paths([path])
    states = [outcome.reason for outcome in index.outcomes]
    for series in index.series:
        states += [r.code if isinstance(r, Refusal) else "stack" for r in read_stacks(series)]
    assert states == [expected]


def test_no_odd_file_is_forgotten(real_data):
    folder = real_data / "odd_dicom"
    present = {str(p.relative_to(folder)) for p in folder.glob("*/*")}
    assert present - set(EXPECTED) == {"nifti/CT_pitch_uint8_nonHU.nii.gz"}


def hu_of(path):
    header = read_header(path)
    stored = np.empty((header.rows, header.columns), np.int16)
    read_stored(header, stored)
    lowest = int(stored.min())
    to_hu(stored, header)
    return stored, lowest


def test_lossless_syntaxes_of_one_slice_agree(real_data):
    folder = real_data / "odd_dicom" / "wg04"
    plain, lowest = hu_of(folder / "CT2_UNC")
    assert (lowest, int(plain.max())) == (-2048, 1433)
    for name in ("CT2_J2KR", "CT2_RLE", "CT2_JPLL"):
        assert np.array_equal(hu_of(folder / name)[0], plain), name


def test_big_endian_and_jpeg_lossless_agree(real_data):
    big, jpeg, lossy = (
        hu_of(real_data / "odd_dicom" / name)[0] for name in EXPECTED if "cornerstone" in name
    )
    assert np.array_equal(big, jpeg)
    assert 0 < np.abs(big.astype(int) - lossy).mean() < 5


@pytest.mark.parametrize("at", [3000, 40_000, 120_000])
def test_damaged_jpeg_is_refused(real_data, tmp_path, at):
    data = bytearray((real_data / "odd_dicom/wg04/CT2_JPLL").read_bytes())
    data[at : at + 64] = bytes(64)
    (tmp_path / "damaged").write_bytes(bytes(data))
    with pytest.raises(Refusal) as refused:
        hu_of(tmp_path / "damaged")
    assert refused.value.code == Reason.UNREADABLE


def test_sign_that_the_codestream_denies_is_put_right(real_data):
    hu, lowest = hu_of(real_data / "odd_dicom/pydicom/J2K_pixelrep_mismatch_deid.dcm")
    assert lowest == -2000
    assert 20 < np.median(hu[200:300, 200:300]) < 45
    assert hu.max() < 3000


def test_duplicates_of_the_derived_series_are_read_once(real_data):
    (series,) = index_paths([real_data / "odd_dicom/derived_headsq/duplicate_positions"]).series
    (stack,) = read_stacks(series)
    assert stack.hu.shape[0] == 93
    assert Reason.DUPLICATES_DROPPED in stack.flags
