"""Real scans and odd files end in the states that their sources name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct.ingest.pipeline import ingest
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series

REAL = {
    "headsq_ge8800_hu": {"vertex-cut", "suspect-hu"},
    "siemens_anthropomorphic_head_2mm": set(),
    "philips_skull_phantom_5mm": {"no-brain"},
    "philips_skull_phantom_tilt_neg18p5": {"no-brain", "gantry-tilt"},
    "vhp_head_ct_quantised16.nii.gz": {"vertex-cut"},
    "scct_average_template_hu_2mm.nii.gz": {"partial-head"},
}
"""What is taken, and with which flags."""

ODD = {
    "derived_headsq/missing_slices": {("refused", "missing-slices")},
    "derived_headsq/no_rescale_tags": {("refused", "no-rescale")},
    "derived_headsq/duplicate_positions": {("flagged", "duplicates-dropped")},
    "icometrix/ct_missing_slice": {("refused", "missing-slices")},
    "icometrix/ct_gantry_tilt": {("refused", "too-few-slices")},
    "nifti": {("refused", "not-hu")},
    "philips": {("refused", "localizer"), ("refused", "secondary-capture")},
    "fodicom": {("refused", "secondary-capture"), ("refused", "no-pixel-data")},
}


@pytest.fixture
def states(tmp_path: Path, key_file: Path) -> Any:
    def run(source: Path) -> list[dict[str, Any]]:
        ingest([source], tmp_path / "store", PRESETS["demo"], jobs=0, key_file=key_file)
        return list(read_jsonl(tmp_path / "store" / "items.jsonl"))

    return run


@pytest.mark.parametrize("name", REAL)
def test_real_scan_is_taken(real_data: Path, states: Any, tmp_path: Path, name: str) -> None:
    (item,) = [i for i in states(real_data / "real" / name) if i["status"] != "skipped"]
    status = "flagged" if REAL[name] else "accepted"
    assert (item["status"], set(item["flags"])) == (status, REAL[name])
    store = open_store(tmp_path / "store")
    hu = store.read_hu([0])[0]
    assert (hu[0] == -1024).all() or (hu[-1] == -1024).mean() > 0.9
    assert 0.1 < (hu > -300).mean() < 0.8


def test_template_in_other_units_is_not_taken(real_data: Path, states: Any) -> None:
    (item,) = states(real_data / "real" / "scct_average_template_cormack_2mm.nii")
    assert (item["status"], item["reason"]) == ("refused", "not-hu")


@pytest.mark.parametrize("name", ODD)
def test_odd_input_ends_as_its_source_says(real_data: Path, states: Any, name: str) -> None:
    found = {(i["status"], i["reason"]) for i in states(real_data / "odd_dicom" / name)}
    assert found == ODD[name]


def test_brain_of_the_couch_scan_keeps_its_hu_and_loses_its_couch(
    real_data: Path, states: Any, tmp_path: Path
) -> None:
    """Means in a block in the middle of the head, before and after; the couch is air."""
    source = real_data / "real" / "siemens_anthropomorphic_head_2mm"
    states(source)
    store = open_store(tmp_path / "store")
    volume = store[store.scan_ids[0]]
    native = read_series(source)
    corners = np.array([[23.5, 27.5, 19.5, 1], [31.5, 35.5, 27.5, 1]]) @ volume.affine_zyx.T
    ends = np.rint(np.sort(corners @ np.linalg.inv(native.affine_zyx).T, axis=0)).astype(int)
    before = native.hu[tuple(slice(low, high) for low, high in ends.T[:3])].mean()
    assert abs(volume.hu[24:32, 28:36, 20:28].mean() - before) < 2
    assert (volume.hu[:, :2] > -300).mean() < 0.02
