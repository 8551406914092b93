from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from headct.dicom.index import index_paths
from headct.dicom.reasons import Reason
from headct.dicom.series import Stack, plan_stacks, read_stacks
from headct.errors import Refusal


def read(folder, **options) -> list[Stack | Refusal]:
    return [stack for series in index_paths([folder]).series for stack in read_stacks(series)]


def codes(results) -> list[str]:
    return sorted(r.code if isinstance(r, Refusal) else "stack" for r in results)


def test_slices_are_sorted_by_position_alone(scan):
    def lie(dataset, i):
        dataset.InstanceNumber = (i * 7) % 12
        dataset.SliceLocation = -i
        dataset.GantryDetectorTilt = 20

    (stack,) = read(scan(edit=lie))
    z = [header.position_mm[2] for header in stack.plan.headers]
    assert z == sorted(z)
    assert not stack.flags


def test_missing_slices_are_refused_with_their_positions(scan):
    folder = scan()
    by_height = sorted(folder.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    by_height[4].unlink()
    by_height[5].unlink()
    (refusal,) = read(folder)
    assert refusal.code == Reason.MISSING_SLICES
    assert "2 of 12 slices missing" in refusal.message
    assert "gaps after -25 mm" in refusal.message


def test_uneven_steps_are_refused(scan):
    def shift(dataset, i):
        if i >= 6:
            dataset.ImagePositionPatient[2] += 3.7

    (refusal,) = read(scan(edit=shift))
    assert refusal.code == Reason.NON_UNIFORM_SPACING


def test_positions_rounded_by_the_scanner_are_even(scan):
    def rounded(dataset, i):
        dataset.ImagePositionPatient[2] = round(float(dataset.ImagePositionPatient[2]), 1)

    (stack,) = read(scan(step_mm=0.625, edit=rounded))
    assert stack.plan.grid.step_mm == pytest.approx(0.625, abs=0.01)


def test_slices_shifted_in_plane_are_refused(scan):
    def jog(dataset, i):
        dataset.ImagePositionPatient[0] += 2.0 * (i % 2)

    (refusal,) = read(scan(edit=jog))
    assert refusal.code == Reason.BAD_GEOMETRY


def test_exact_duplicates_are_read_once(scan):
    folder = scan()
    (folder / "again.dcm").write_bytes((folder / "IM0003.dcm").read_bytes())
    twin = pydicom.dcmread(folder / "IM0005.dcm")
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    twin.save_as(folder / "twin.dcm")
    (stack,) = read(folder)
    assert stack.hu.shape[0] == 12
    assert stack.flags == (Reason.DUPLICATES_DROPPED,)


@pytest.mark.parametrize("new_uid", [False, True])
def test_one_place_with_two_contents_is_a_conflict(scan, new_uid):
    folder = scan()
    other = pydicom.dcmread(folder / "IM0003.dcm")
    other.PixelData = bytes(reversed(other.PixelData))
    if new_uid:
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    other.save_as(folder / "other.dcm")
    assert codes(read(folder)) == [Reason.DUPLICATE_CONFLICT if new_uid else Reason.CONFLICT]


def test_two_patients_under_one_uid_are_never_merged(scan):
    def another(dataset, i):
        if i % 2:
            dataset.PatientID = "ANOTHER"

    assert codes(read(scan(edit=another))) == [Reason.MIXED_PATIENTS]


def test_an_empty_patient_id_is_flagged(scan):
    (stack,) = read(scan(edit=lambda dataset, i: setattr(dataset, "PatientID", "")))
    assert stack.flags == (Reason.NO_PATIENT_ID,)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ConvolutionKernel", "H60"),
        ("SliceThickness", "10"),
        ("TemporalPositionIdentifier", "2"),
        ("AcquisitionNumber", "2"),
        ("KVP", "80"),
        ("AcquisitionTime", "101112"),
        ("ImageType", ["DERIVED", "SECONDARY", "AXIAL"]),
        ("PixelSpacing", [4.0, 4.5]),
    ],
)
def test_two_volumes_under_one_uid_are_split(scan, tmp_path, tag, value):
    uid = generate_uid()

    def second(dataset, i):
        setattr(dataset, tag, value)
        dataset.RescaleIntercept = -1000

    scan("both/a", series_uid=uid)
    study = pydicom.dcmread(next((tmp_path / "both" / "a").iterdir()))

    def same_study(dataset, i):
        second(dataset, i)
        dataset.StudyInstanceUID = study.StudyInstanceUID
        dataset.FrameOfReferenceUID = study.FrameOfReferenceUID

    scan("both/b", series_uid=uid, edit=same_study)
    stacks = read(tmp_path / "both")
    assert codes(stacks) == ["stack", "stack"]
    assert [stack.hu.shape[0] for stack in stacks] == [12, 12]
    assert all(Reason.SPLIT_SERIES in stack.flags for stack in stacks)
    assert len({stack.plan.part for stack in stacks}) == 2
    for stack in stacks:
        assert len({header.intercept for header in stack.plan.headers}) == 1


def test_a_scanner_that_counts_every_rotation_makes_one_volume(scan):
    def count(dataset, i):
        dataset.AcquisitionNumber = i // 4

    (stack,) = read(scan(edit=count))
    assert stack.hu.shape[0] == 12


def test_a_slice_of_another_matrix_is_not_stacked(scan):
    def crop(dataset, i):
        if i == 5:
            dataset.Rows, dataset.PixelData = 10, dataset.PixelData[: 10 * 36 * 2]

    assert codes(read(scan(edit=crop))) == [Reason.MISSING_SLICES, Reason.SINGLE_SLICE]


def test_a_localizer_under_the_same_uid_is_left_out_with_a_reason(scan):
    def scout(dataset, i):
        if i == 11:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    assert codes(read(scan(edit=scout))) == [Reason.LOCALIZER, "stack"]


@pytest.mark.parametrize("n", [1, 4])
def test_too_few_slices_make_no_volume(scan, n):
    assert codes(read(scan(n=n))) == [Reason.SINGLE_SLICE if n == 1 else Reason.TOO_FEW_SLICES]


def test_tilt_is_seen_from_positions_not_from_the_tag(scan):
    turn = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    (stack,) = read(scan(axes=turn, shear=(0.0, -10 * np.tan(0.3))))
    assert stack.flags == (Reason.GANTRY_TILT,)
    assert stack.plan.grid.tilt_degrees == pytest.approx(np.degrees(0.3), abs=0.01)


def test_coronal_slices_are_flagged(scan):
    turn = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    (stack,) = read(scan(axes=turn))
    assert Reason.NOT_AXIAL in stack.flags


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        ("ImagePositionPatient", None, Reason.NO_GEOMETRY),
        ("ImageOrientationPatient", None, Reason.NO_GEOMETRY),
        ("PixelSpacing", None, Reason.NO_GEOMETRY),
        ("PixelSpacing", [0, 0], Reason.BAD_GEOMETRY),
        ("PixelSpacing", [500, 500], Reason.BAD_GEOMETRY),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], Reason.BAD_GEOMETRY),
        ("ImageOrientationPatient", [1, 0, 0, 0.3, 1, 0], Reason.BAD_GEOMETRY),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], Reason.BAD_GEOMETRY),
        ("ImagePositionPatient", [0, 0, 99999], Reason.BAD_GEOMETRY),
    ],
)
def test_one_slice_with_bad_geometry_refuses_the_series(scan, tag, value, reason):
    def spoil(dataset, i):
        if i == 11:
            setattr(dataset, tag, value)

    assert codes(read(scan(edit=spoil))) == [reason]


def test_geometry_that_is_not_a_number_is_refused(scan):
    folder = scan()
    for path in folder.iterdir():
        data = path.read_bytes()
        at = data.index(b"\x28\x00\x30\x00DS")
        path.write_bytes(data[: at + 8] + b"x" + data[at + 9 :])
    assert codes(read(folder)) == [Reason.BAD_GEOMETRY]


def test_enhanced_multiframe_gives_the_same_volume(scan, tmp_path):
    (classic,) = read(scan())
    (enhanced,) = read(_as_enhanced(tmp_path / "series", tmp_path / "enhanced"))
    assert np.array_equal(classic.hu, enhanced.hu)
    assert np.allclose(classic.affine_lps, enhanced.affine_lps)


def _as_enhanced(folder, out):
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for dataset in datasets:
        dataset.Manufacturer = dataset.StudyID = dataset.AccessionNumber = "1"
        dataset.StudyDate, dataset.StudyTime = "20200101", "101010"
        dataset.PatientBirthDate = dataset.PatientSex = dataset.ReferringPhysicianName = ""
        dataset.SeriesNumber, dataset.PatientPosition = 1, "HFS"
        dataset.AcquisitionNumber, dataset.PositionReferenceIndicator = 1, ""
    image = LegacyConvertedEnhancedCTImage(datasets, generate_uid(), 2, generate_uid(), 1)
    out.mkdir()
    image.save_as(out / "enhanced.dcm")
    return out


def test_planning_reads_no_pixels(scan, monkeypatch):
    (series,) = index_paths([scan()]).series
    monkeypatch.setattr("headct.dicom.series.read_stored", None)
    assert len(plan_stacks(series)) == 1
