"""What is true of a rendered scan: labels, volumes, sides, midline shift, width of ventricles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headct.phantom.findings import Infarct, Lesion, Mass
from headct.phantom.profile import DRAWN_FINDINGS, FINDINGS
from headct.phantom.scan import ScanSpec
from headct.phantom.sizing import evans_index

SEEN_ML = 0.02
"""A focal finding is labelled if at least this much of it is in the picture."""
UNPLACED = ("atrophy", "oedema")
"""Findings of the whole brain, without a volume."""


def describe(
    spec: ScanSpec, volume_ml: Mapping[str, float], csf_ml: tuple[float, float]
) -> dict[str, Any]:
    """The truth about a rendered scan, in plain JSON values.

    Args:
        spec: what was rendered.
        volume_ml: of each focal finding in the picture.
        csf_ml: CSF in the picture, that of sulci and cisterns and that of the ventricles, blood in
            it included.

    Returns:
        `labels` (every finding -> 0 or 1), `volume_ml`, `midline_shift_mm`, `evans_index`,
        `csf_ml`, `ventricles_ml`, `days` since the first scan, and `findings`: side, location,
        stage, HU, severity, age in days and number of lesions of each that is in the picture.
    """
    labels = dict.fromkeys(FINDINGS, 0)
    planted: dict[str, Any] = {}
    for finding in DRAWN_FINDINGS:
        lesions = [lesion for lesion in spec.lesions if lesion.finding == finding]
        seen = finding in UNPLACED or volume_ml.get(finding, 0.0) >= SEEN_ML
        if lesions and seen:
            labels[finding] = 1
            planted[finding] = _describe(lesions, spec.mirror)
    shift = spec.midline_shift_mm
    labels["midline_shift"] = int(abs(shift) >= spec.shift_label_mm)
    return {
        "labels": labels,
        "volume_ml": {f: round(volume_ml[f], 3) for f in DRAWN_FINDINGS if f in volume_ml},
        "midline_shift_mm": round(shift, 2),
        "evans_index": round(evans_index(spec.anatomy, spec.brain), 3),
        "csf_ml": round(csf_ml[0], 1),
        "ventricles_ml": round(csf_ml[1], 1),
        "days": spec.days,
        "findings": planted,
    }


def _describe(lesions: list[Lesion], mirror: bool) -> dict[str, Any]:
    """All lesions of one finding; HU, stage and age are those of the largest."""
    largest = max(lesions, key=_size)
    sides = {_side(lesion, mirror) for lesion in lesions}
    return {
        "side": sides.pop() if len(sides) == 1 else "both",
        "location": ", ".join(dict.fromkeys(lesion.location for lesion in lesions)),
        "stage": largest.stage or None,
        "hu": round(largest.hu, 1),
        "severity": round(largest.severity, 3),
        "age_days": round(largest.age_days, 1),
        "n_lesions": len(lesions),
    }


def _size(lesion: Lesion) -> float:
    if isinstance(lesion, Mass | Infarct):
        return lesion.radii[0] * lesion.radii[1] * lesion.radii[2]
    return lesion.volume_ml


def _side(lesion: Lesion, mirror: bool) -> str:
    side = lesion.side
    if mirror and side in ("left", "right"):
        return "left" if side == "right" else "right"
    return side
