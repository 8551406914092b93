"""What is true of a rendered scan: labels, volumes, sides, midline shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headct.phantom.findings import Lesion
from headct.phantom.profile import DRAWN_FINDINGS, FINDINGS
from headct.phantom.scan import ScanSpec

SEEN_ML = 0.02
"""A focal finding is labelled if at least this much of it is in the picture."""


def describe(spec: ScanSpec, volume_ml: Mapping[str, float]) -> dict[str, Any]:
    """The truth about a rendered scan, in plain JSON values.

    Args:
        spec: what was rendered.
        volume_ml: of each focal finding in the picture.

    Returns:
        `labels` (every finding -> 0 or 1), `volume_ml`, `midline_shift_mm`, and `findings`: side,
        location, HU and severity of each that is in the picture.
    """
    labels = dict.fromkeys(FINDINGS, 0)
    planted: dict[str, Any] = {}
    for lesion in spec.lesions:
        placed = lesion.finding not in ("atrophy", "oedema")
        if placed and volume_ml.get(lesion.finding, 0.0) < SEEN_ML:
            continue
        labels[lesion.finding] = 1
        planted[lesion.finding] = _describe(lesion, spec.mirror)
    shift = spec.midline_shift_mm
    labels["midline_shift"] = int(abs(shift) >= spec.shift_label_mm)
    return {
        "labels": labels,
        "volume_ml": {f: round(volume_ml[f], 3) for f in DRAWN_FINDINGS if f in volume_ml},
        "midline_shift_mm": round(shift, 2),
        "findings": planted,
    }


def _describe(lesion: Lesion, mirror: bool) -> dict[str, Any]:
    side = lesion.side
    if mirror and side in ("left", "right"):
        side = "left" if side == "right" else "right"
    return {
        "side": side,
        "location": lesion.location,
        "hu": round(lesion.hu, 1),
        "severity": round(lesion.severity, 3),
    }
