"""The truth about a scan in the words of a radiology report: findings, then an impression."""

from __future__ import annotations

from typing import Any

NAMES = {
    "edh": "epidural haematoma",
    "sdh": "subdural haematoma",
    "sah": "subarachnoid haemorrhage",
    "iph": "intraparenchymal haemorrhage",
    "ivh": "intraventricular haemorrhage",
    "infarct": "infarct",
    "mass": "mass",
    "hydrocephalus": "hydrocephalus",
    "fracture": "skull fracture",
    "atrophy": "cerebral atrophy",
    "oedema": "diffuse cerebral oedema",
}
DIFFUSE_WORDS = {
    "hydrocephalus": "Dilated ventricles with narrow sulci, Evans index {evans:.2f}: {name}.",
    "atrophy": "Wide sulci and temporal horns, Evans index {evans:.2f}: {name}.",
    "oedema": "Effaced sulci and cisterns, grey and white matter less distinct: {name}.",
}
STAGES = {"iso": "subacute, isodense", "mixed": "acute on chronic"}
WITHOUT_HU = ("fracture",)
"""Their HU is that of what fills the cleft."""


def write_report(truth: dict[str, Any]) -> tuple[str, str]:
    """Findings and impression, in sentences.

    Args:
        truth: see `truth.describe`.
    """
    present = truth["findings"]
    sentences = [_sentence(finding, about, truth) for finding, about in present.items()]
    short = [_named(finding, about) for finding, about in present.items()]
    shift = truth["midline_shift_mm"]
    if truth["labels"]["midline_shift"]:
        side = "right" if shift > 0 else "left"
        sentences.append(f"Midline shift of {abs(shift):.0f} mm to the {side}.")
        short.append(f"midline shift of {abs(shift):.0f} mm")
    else:
        sentences.append("No relevant midline shift.")
    absent = [name for name in ("haemorrhage", "infarct", "mass") if not _has(name, present)]
    if absent:
        sentences.append(f"No {' or '.join(', '.join(absent).rsplit(', ', 1))}.")
    impression = "; ".join(short) or "no acute abnormality"
    return " ".join(sentences), f"{impression[0].upper()}{impression[1:]}."


def _sentence(finding: str, about: dict[str, Any], truth: dict[str, Any]) -> str:
    name = _named(finding, about)
    if finding in DIFFUSE_WORDS:
        return DIFFUSE_WORDS[finding].format(evans=truth["evans_index"], name=name)
    details = []
    if about["n_lesions"] > 1:
        details.append(f"{about['n_lesions']} lesions")
    if finding in truth["volume_ml"] and finding != "fracture":
        details.append(f"{truth['volume_ml'][finding]:.1f} ml")
    if finding not in WITHOUT_HU:
        details.append(f"about {about['hu']:.0f} HU")
    text = f"{name}, {about['location']}"
    return f"{text[0].upper()}{text[1:]}{': ' if details else ''}{', '.join(details)}."


def _named(finding: str, about: dict[str, Any]) -> str:
    if finding in DIFFUSE_WORDS:
        return NAMES[finding]
    side = {"both": "bilateral", "midline": "midline"}.get(about["side"], about["side"])
    stage = STAGES.get(about["stage"], about["stage"] or "")
    return " ".join(word for word in (stage, side, NAMES[finding]) if word)


def _has(name: str, present: dict[str, Any]) -> bool:
    blood = ("edh", "sdh", "sah", "iph", "ivh")
    return any(finding in present for finding in (blood if name == "haemorrhage" else (name,)))
