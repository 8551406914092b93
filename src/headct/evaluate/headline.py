"""What the numbers say, in sentences that are built from them and claim no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from headct.evaluate.comparisons import MACRO
from headct.evaluate.results import Results, Row
from headct.evaluate.theme import method_name

Verdict = Literal["better", "unclear", "worse", "noted"]
HISTOGRAM = "probe-histogram"


@dataclass(frozen=True)
class Answer:
    """One question, its answer in a sentence, and how it went."""

    question: str
    sentence: str
    verdict: Verdict


def lead_method(results: Results) -> str:
    """The method that the report is about: fine-tuning, else the first pretrained one, else any.

    Chosen by name, never by its score on the test scans.
    """
    if "finetune" in results.methods:
        return "finetune"
    return next(
        (name for name in results.methods if name in results.pretrained), results.methods[0]
    )


def opening(results: Results, lead: str) -> str:
    """How good the lead method is at every site."""
    parts = []
    for site in results.sites:
        found = results.metric(lead, site["site"], MACRO, "auroc")
        where = f"at {site['site'] or 'the only site'} ({_role(site)})"
        score = f"{found.value:.3f} ({between(found.lo, found.hi)})"
        if not site["in_macro"]:
            score = "no score, for want of positives,"
        parts.append(f"{score} {where}")
    about = [a for a in results.summary["methods"] if a["method"] == lead]
    few = max((k for a in about for k in a["k"]), default=0)
    labels = f"{max(a['n_train'] for a in about)} labelled training scans"
    if few:
        labels = f"{few} training scans with and {few} without each finding"
    n_findings = max(len(site["in_macro"]) for site in results.sites)
    return (
        f"{the(lead, start=True)}, with {labels}, reached a macro AUROC "
        f"over {n_findings} findings of {' and '.join(parts)}."
    )


def answers(results: Results, lead: str) -> list[Answer]:
    """Does pretraining help; does the method beat what needs no network; does it carry over."""
    found = [
        _against(results, lead, floor, f"Does {the(lead)} beat {the(floor)}?")
        for floor in results.methods
        if floor.startswith("scratch") or floor in (HISTOGRAM, "probe-random-init")
        if floor != lead
    ]
    return [answer for answer in [*found, _carries_over(results, lead)] if answer is not None]


def _against(results: Results, lead: str, floor: str, question: str) -> Answer | None:
    rows = [(site, results.difference(lead, floor, site["site"])) for site in results.sites]
    compared = [(site, row) for site, row in rows if row is not None]
    if not compared:
        return None
    verdicts = {verdict(row) for _, row in compared}
    overall: Verdict = verdicts.pop() if len(verdicts) == 1 else "unclear"
    parts = [_outcome(site, row) for site, row in compared]
    sentence = f"{_opening(overall, len(compared))}: {', '.join(parts)}."
    if floor == HISTOGRAM and overall != "better":
        sentence += (
            " So it is not shown everywhere that the network adds to counting Hounsfield units."
        )
    return Answer(question, sentence, overall)


def verdict(row: Row) -> Verdict:
    """What an interval of a difference says."""
    return "better" if row["lo"] > 0 else "worse" if row["hi"] < 0 else "unclear"


def _opening(overall: Verdict, n_sites: int) -> str:
    everywhere = " at every site" if n_sites > 1 else ""
    return {
        "better": f"Yes{everywhere}",
        "worse": f"No, it is worse{everywhere}",
        "unclear": "Not shown at every site" if n_sites > 1 else "Not shown",
        "noted": "",
    }[overall]


def _outcome(site: Row, row: Row) -> str:
    interval = between(row["lo"], row["hi"], sign=True)
    doubt = "; no difference lies within" if verdict(row) == "unclear" else ""
    return f"{signed(row['difference'])} {_role(site)}ly ({interval}{doubt})"


def _carries_over(results: Results, lead: str) -> Answer | None:
    inside = [site for site in results.sites if site["internal"]]
    outside = [site for site in results.sites if not site["internal"]]
    if not inside or not outside:
        return None
    at_home, away = (results.metric(lead, s[0]["site"], MACRO, "auroc") for s in (inside, outside))
    if not (at_home.defined and away.defined):
        return None
    drop = at_home.value - away.value
    overlap: Verdict = "worse" if away.hi < at_home.lo else "noted"
    words = "less" if drop > 0 else "more"
    meet = "do not overlap" if overlap == "worse" else "overlap"
    sentence = (
        f"{abs(drop):.3f} {words} at the external site than at the internal one "
        f"(other patients: the intervals {meet}). "
        "Thresholds were fixed on internal tune patients and carried over unchanged."
    )
    return Answer("Does it carry over to the other hospital?", sentence, overlap)


def between(lo: float, hi: float, *, sign: bool = False) -> str:
    """An interval in words: `0.711 to 0.790`."""
    if not math.isfinite(lo):
        return "no interval"
    return f"{signed(lo)} to {signed(hi)}" if sign else f"{lo:.3f} to {hi:.3f}"


def signed(value: float) -> str:
    """A difference with its sign; a dash where there is none."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "–"


def _role(site: Row) -> str:
    return "internal" if site["internal"] else "external"


def the(method: str, *, start: bool = False) -> str:
    """A method inside a sentence: `the fine-tuned encoder`, `the 3D CNN from scratch`."""
    name = method_name(method)
    if name[:2].isalpha() and not any(letter.isupper() for letter in name[1:3]):
        name = name[0].lower() + name[1:]
    return f"{'The' if start else 'the'} {name}"
