from __future__ import annotations

from pathlib import Path

import pytest
from tests.labels.sets import run

from headct.errors import LabelError
from headct.labels.vocabulary import contradicts, implied, in_order, shared_name, vocabulary
from headct.phantom.profile import FINDINGS


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("any", "ich"),
        ("ICH", "ich"),
        ("Intraparenchymal", "iph"),
        ("SDH", "sdh"),
        ("subdural hematoma", "sdh"),
        ("BleedLocation-Left", "bleed_left"),
        ("CalvarialFracture", "calvarial_fracture"),
        ("Fracture_Yes_No", "fracture"),
        ("MidlineShift", "midline_shift"),
        ("midline_shift", "midline_shift"),
        ("tumour", "mass"),
        ("cerebral edema", "oedema"),
        ("ADRD", "dementia"),
        ("HCP", "hydrocephalus"),
        ("Mass Effect", "mass_effect"),
    ],
)
def test_names_of_data_sets_have_one_shared_name(column, name):
    assert shared_name(column) == name


def test_an_unknown_finding_is_an_error_with_the_nearest_name():
    with pytest.raises(LabelError, match="pneumothorax"):
        shared_name("pneumothorax")
    with pytest.raises(LabelError) as caught:
        shared_name("subdurall")
    assert "did you mean sdh" in caught.value.remedy


def test_the_vocabulary_is_sound():
    terms = vocabulary()
    assert set(FINDINGS) <= set(terms), "the phantom speaks it, too"
    spellings = [
        "".join(c for c in s.lower() if c.isalnum())
        for name, term in terms.items()
        for s in {"".join(c for c in t.lower() if c.isalnum()) for t in (name, *term.aliases)}
    ]
    assert len(spellings) == len(set(spellings)), "one spelling, one finding"
    for name, term in terms.items():
        assert term.parent is None or term.parent in terms
        assert term.swaps_with is None or terms[term.swaps_with].swaps_with == name


def test_a_subtype_implies_its_parent_and_an_absent_parent_its_subtypes():
    assert implied({"ich": None, "sdh": 1}) == {"ich": 1, "sdh": 1}
    assert implied({"ich": 0, "sdh": None}) == {"ich": 0, "sdh": 0}
    assert implied({"ich": 1, "sdh": None}) == {"ich": 1, "sdh": None}
    assert implied({"sdh": 1}) == {"sdh": 1}, "no column is made up"
    assert contradicts({"ich": 0, "sdh": 1})
    assert not contradicts({"ich": None, "sdh": 1})


def test_the_order_is_that_of_the_vocabulary_then_by_name():
    assert in_order(["own", "edh", "ich", "another"]) == ["ich", "edh", "another", "own"]


def test_it_can_be_printed():
    answer = run("vocabulary")
    assert answer.exit_code == 0
    assert "sdh: subdural haematoma of any age (implies ich)" in answer.output
    assert "BleedLocation-Left" in answer.output


def test_the_reference_page_lists_it_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "findings.md").read_text()
    for name, term in vocabulary().items():
        parent = f"`{term.parent}`" if term.parent else ""
        assert f"| `{name}` | {term.meaning} | {parent} | {', '.join(term.aliases)} |" in page
