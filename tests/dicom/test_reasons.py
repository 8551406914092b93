from __future__ import annotations

import re
from pathlib import Path

from headct.dicom.reasons import Reason, reason_of
from headct.errors import Refusal

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "reason-codes.md"


def test_the_reference_page_lists_every_code_with_its_status_and_meaning():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(r.value, r.status.value, r.meaning) for r in Reason]


def test_codes_are_kebab_case_and_named_like_their_members():
    for reason in Reason:
        assert reason.name.lower().replace("_", "-") == reason.value
        assert reason.meaning.endswith(".")


def test_a_refusal_leads_back_to_its_reason():
    assert reason_of(Refusal("x", code=Reason.NOT_HU)) is Reason.NOT_HU
