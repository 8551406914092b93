"""The written rule: what refuses, flags or passes, and what a faulty rule says."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.dicom.elements import Elements
from headct.dicom.header import header_from
from headct.dicom.reasons import Reason
from headct.errors import UsageError
from headct.ingest.criteria import Criteria, check_header, check_step, decide, load_criteria


def test_defaults_follow_the_reason_but_for_phantoms() -> None:
    criteria = Criteria()
    assert criteria.verdict(Reason.CONTRAST) == "flag"
    assert criteria.verdict(Reason.NOT_HEAD) == "refuse"
    assert criteria.verdict(Reason.NOT_AXIAL) == "refuse"
    assert criteria.verdict(Reason.NO_BRAIN) == "flag"


def test_first_refusing_reason_is_named_and_flags_are_kept_once() -> None:
    faults = [(Reason.CONTRAST, "a"), (Reason.METAL, "b"), (Reason.CONTRAST, "c")]
    assert decide(faults, Criteria()).flags == ((Reason.CONTRAST, "a"), (Reason.METAL, "b"))
    assert decide(faults, Criteria(accept=("contrast",))).flags == ((Reason.METAL, "b"),)
    refused = decide(faults, Criteria(refuse=("metal",))).refused
    assert refused == (Reason.METAL, "b")


def test_file_with_a_rule(tmp_path: Path) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text('refuse = ["contrast", "bone-kernel"]\nthick_above_mm = 2.5\n')
    criteria = load_criteria(path)
    assert criteria.verdict(Reason.BONE_KERNEL) == "refuse"
    assert check_step(5.0, criteria)[0][0] == Reason.THICK_SLICES
    assert check_step(2.5, criteria) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('refuse = ["contrats"]', "not a reason"),
        ('refuse = ["truncated"]', "not a reason that can be decided"),
        ('refuse = ["metal"]\naccept = ["metal"]', "more than one"),
        ('bone_kernels = ["("]', "not a pattern"),
        ("refused = []", "unknown key"),
    ],
)
def test_faulty_rules_are_wrong_use(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_criteria(path)


@pytest.mark.parametrize(
    ("description", "kvp", "kernel", "fits"),
    [
        ("CT HEAD WO CONTRAST", "120", "J40s", True),
        ("ct head^wo  contrast", "120.0", "J40s\\3", True),
        ("CT HEAD WO CONTRAST", "100", "J40s", False),
        ("CT HEAD WO CONTRAST", "120", "H70h", False),
        ("CT CHEST", "120", "J40s", False),
        ("CT SKULL", "80", "FC26", True),
        ("CT SKULL", "80", "FC30", False),
    ],
)
def test_a_table_of_descriptions_voltages_and_kernels(
    tmp_path: Path, description: str, kvp: str, kernel: str, fits: bool
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        "Study Description,kVp,Convolution Kernel\nCT Head WO Contrast,120,J40s\n*skull*,,FC2?\n"
    )
    values = {0x00081030: description, 0x00180060: kvp, 0x00181210: kernel}
    header = header_from(Path(), Elements({tag: text.encode() for tag, text in values.items()}))
    found = [reason for reason, _ in check_header([header], 5.0, load_criteria(path))]
    assert (Reason.NOT_IN_TABLE not in found) == fits
