from __future__ import annotations

import time
import tracemalloc

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from headct.dicom.header import read_header
from headct.dicom.index import index_paths
from headct.dicom.kind import check_kind, check_values
from headct.dicom.reasons import Reason
from headct.dicom.series import read_stacks
from headct.errors import Refusal

SC = "1.2.840.10008.5.1.4.1.1.7"
MR = "1.2.840.10008.5.1.4.1.1.4"
PET = "1.2.840.10008.5.1.4.1.1.128"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR", "SOPClassUID": MR}, Reason.NOT_CT),
        ({"Modality": "PT", "SOPClassUID": PET}, Reason.NOT_CT),
        ({"Modality": "CT", "SOPClassUID": MR}, Reason.MODALITY_CONFLICT),
        ({"Modality": "MR"}, Reason.MODALITY_CONFLICT),
        ({"SOPClassUID": SC}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALIZER),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, Reason.DERIVED_IMAGE),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, Reason.DERIVED_IMAGE),
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN_TEXT),
        ({"SamplesPerPixel": 3, "Columns": 12, "PhotometricInterpretation": "RGB"}, Reason.COLOUR),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.COLOUR),
        ({"PhotometricInterpretation": "MONOCHROME1"}, Reason.MONOCHROME1),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, Reason.EIGHT_BIT),
        ({"BitsStored": 17}, Reason.BAD_PIXEL_FORMAT),
        ({"HighBit": 3}, Reason.BAD_PIXEL_FORMAT),
        ({"NumberOfFrames": 12, "Rows": 4, "Columns": 30}, Reason.BAD_PIXEL_FORMAT),
        ({"RescaleSlope": None}, Reason.NO_RESCALE),
        ({"RescaleIntercept": None}, Reason.NO_RESCALE),
        ({"RescaleSlope": 0}, Reason.BAD_RESCALE),
        ({"RescaleSlope": -1}, Reason.BAD_RESCALE),
        ({"RescaleIntercept": 1e9}, Reason.BAD_RESCALE),
        ({"RescaleType": "US"}, Reason.NOT_HU),
        ({"Rows": 65535, "Columns": 65535}, Reason.TOO_LARGE),
        ({"NumberOfFrames": 2**31 - 1}, Reason.TOO_LARGE),
        ({"NumberOfFrames": 0}, Reason.BAD_PIXEL_FORMAT),
        ({"Rows": 4000}, Reason.TRUNCATED),
    ],
)
def test_what_is_no_ct_slice_in_hu_is_refused(scan, changes, reason):
    def change(dataset, i):
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)

    index = index_paths([scan(edit=change)])
    codes = {outcome.reason for outcome in index.outcomes}
    for series in index.series:
        codes |= {r.code for r in read_stacks(series) if isinstance(r, Refusal)}
    assert codes == {reason}


def test_an_image_without_pixels_is_refused(scan):
    folder = scan(edit=lambda dataset, i: delattr(dataset, "PixelData"))
    header = read_header(folder / "IM0000.dcm")
    assert check_kind(header)[0] == Reason.NO_PIXEL_DATA


def test_an_unknown_transfer_syntax_is_refused_by_name(scan):
    folder = scan()
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        data = path.read_bytes().replace(
            ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.9.9.9\0"
        )
        path.write_bytes(data)
    header = read_header(folder / "IM0000.dcm")
    assert check_values(header)[0] == Reason.UNSUPPORTED_TRANSFER_SYNTAX


def test_a_bomb_costs_neither_time_nor_memory(scan):
    def bomb(dataset, i):
        dataset.Rows = dataset.Columns = 65535
        dataset.NumberOfFrames = 2**31 - 1

    folder = scan(n=1, edit=bomb)
    tracemalloc.start()
    started = time.process_time()
    (series,) = index_paths([folder]).series
    (refusal,) = read_stacks(series)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refusal.code == Reason.TOO_LARGE
    assert time.process_time() - started < 1
    assert peak < 2_000_000
