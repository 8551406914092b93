"""How findings change with time: blood is resorbed, infarcts go through stages, tumours grow.

A finding is drawn as it was when it came about, with its age at the patient's first scan and the
blood volume of that scan. `aged` gives it as it is some days later; None where nothing is left.

Source:
    Grossman, Yousem, Neuroradiology; for density of blood in CT: Dolinskas et al. 1977
    (1.5 HU a day in the brain), Lee et al. 1997 (subdural: isodense at 1-3 weeks).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headct.phantom.findings import (
    Bleed,
    Collection,
    Diffuse,
    Fracture,
    Infarct,
    Lesion,
    Mass,
    Subarachnoid,
    VentricularBlood,
)
from headct.phantom.profile import DrawnFinding

Curve = tuple[tuple[float, ...], tuple[float, ...]]
"""Days and values between which it is linear."""

DENSITY: dict[str, Curve] = {
    "edh": ((0, 3, 7, 14, 30, 60), (1, 0.97, 0.8, 0.55, 0.25, 0)),
    "sdh": ((0, 3, 7, 14, 21, 30, 60), (1, 0.97, 0.8, 0.5, 0.32, 0.15, 0)),
    "sah": ((0, 2, 5, 10, 14), (1, 0.9, 0.55, 0.2, 0)),
    "iph": ((0, 3, 7, 14, 30, 60), (1, 0.95, 0.75, 0.45, 0.1, 0)),
    "ivh": ((0, 2, 7, 14, 30), (1, 0.9, 0.55, 0.25, 0)),
}
"""What is left of the excess of clotted blood over `FLUID_HU`, by days."""
FLUID_HU: dict[str, float] = {"edh": 24, "sdh": 18, "sah": 12, "iph": 13, "ivh": 13}
VOLUME: dict[str, Curve] = {
    "edh": ((0, 7, 14, 30, 60, 120), (1, 0.92, 0.75, 0.4, 0.12, 0)),
    "sdh": ((0, 7, 21, 45, 90, 180, 300), (1, 1, 1.15, 1.0, 0.5, 0.15, 0)),
    "sah": ((0, 2, 7, 14, 21), (1, 0.9, 0.4, 0.08, 0)),
    "iph": ((0, 3, 7, 14, 30, 60, 120), (1, 1, 0.85, 0.65, 0.35, 0.18, 0.1)),
    "ivh": ((0, 2, 7, 14, 30), (1, 0.9, 0.45, 0.15, 0)),
}
"""Volume by days since the bleeding."""
RIM: Curve = ((0, 1, 4, 10, 20, 40), (0.5, 0.8, 1.4, 1.6, 0.9, 0.15))
"""Width of the oedema around a bleed."""
INFARCT_HU: Curve = ((0, 0.25, 1, 3, 7, 14, 21, 45, 90), (30, 29, 25, 20.5, 18, 20, 23, 14, 9))
"""HU of infarcted brain whose white matter had 28; near the third week it looks better again."""
INFARCT_SHARE: Curve = ((0, 0.1, 0.25, 1, 3), (0.1, 0.3, 0.45, 0.85, 1))
"""How far grey and white have come to that."""
INFARCT_SWELLING: Curve = (
    (0, 0.25, 1, 4, 8, 14, 21, 60, 120),
    (0, 0.1, 0.6, 1, 0.8, 0.3, 0, -0.4, -0.8),
)
"""Share of the greatest swelling; later it shrinks."""
FRACTURE: Curve = ((0, 30, 120, 365, 730), (1, 0.9, 0.55, 0.2, 0))
SWELLING: Curve = ((0, 3, 7, 14, 30), (1, 1, 0.6, 0.2, 0))
OEDEMA: Curve = ((0, 3, 7, 14, 30), (1, 1.1, 0.75, 0.3, 0))
HYDROCEPHALUS: Curve = ((0, 7, 30, 90, 400), (1, 0.95, 0.75, 0.6, 0.5))
"""Drained in most patients, so that ventricles become narrower again."""
ATROPHY_PER_DAY = 0.05 / 365
DOUBLING_DAYS = 150.0
"""Of the volume of a tumour."""
MAX_GROWTH = 4.0
NOTHING_ML = 0.03
"""Less than this is not a lesion any more."""


def at(curve: Curve, days: float) -> float:
    """Value of a curve at a time."""
    return float(np.interp(days, *curve))


def aged(lesion: Lesion, days: float) -> Lesion | None:
    """A finding `days` after the patient's first scan, None where it is gone.

    Args:
        lesion: as it was when it came about, see above.
        days: since the first scan, 0 or more.
    """
    age = lesion.age_days + days
    match lesion:
        case Collection() | Subarachnoid() | Bleed() | VentricularBlood():
            return _older_blood(lesion, age)
        case Infarct():
            return _older_infarct(lesion, age)
        case Mass():
            return _grown(lesion, age, days)
        case Fracture():
            left = at(FRACTURE, age)
            swelling = lesion.swelling_mm * at(SWELLING, age)
            healed = replace(lesion, width_mm=lesion.width_mm * left, swelling_mm=swelling)
            return replace(healed, age_days=age) if left > 0.1 else None
        case Diffuse():
            return _changed(lesion, days)
    return lesion


def _older_blood(lesion: Lesion, age: float) -> Lesion | None:
    finding = lesion.finding
    volume = lesion.volume_ml * at(VOLUME[finding], age) / at(VOLUME[finding], lesion.age_days)
    if volume < NOTHING_ML:
        return None
    fluid = FLUID_HU[finding]
    left = at(DENSITY[finding], age)
    hu = fluid + (lesion.hu - fluid) * left
    older = replace(lesion, hu=hu, volume_ml=volume, age_days=age, stage=blood_stage(finding, age))
    if isinstance(older, Bleed):
        return replace(older, rim_mm=older.rim_mm * at(RIM, age))
    if isinstance(older, Collection) and older.serum_hu:
        return replace(older, stage="mixed") if left > 0.3 else replace(older, serum_hu=0.0)
    if isinstance(older, Collection) and left < 0.6:
        return replace(older, swirl_hu=0.0)
    return older


def blood_stage(finding: DrawnFinding, age_days: float) -> str:
    """Name of the density of blood of an age; a subdural one is as dense as brain for a while."""
    between = "iso" if finding == "sdh" else "subacute"
    return "acute" if age_days < 5 else between if age_days < 21 else "chronic"


def _older_infarct(lesion: Infarct, age: float) -> Infarct:
    return replace(
        lesion,
        hu=max(5.0, lesion.hu + at(INFARCT_HU, age)),
        share=min(1.0, lesion.share * at(INFARCT_SHARE, age)),
        swelling=lesion.swelling * at(INFARCT_SWELLING, age),
        stage=infarct_stage(age),
        age_days=age,
    )


def infarct_stage(age_days: float) -> str:
    """Name of the stage of an infarct of an age."""
    for stage, until in (("hyperacute", 0.3), ("acute", 3.0), ("subacute", 30.0)):
        if age_days < until:
            return stage
    return "chronic"


def _grown(lesion: Mass, age: float, days: float) -> Mass:
    k = min(2 ** (days / DOUBLING_DAYS), MAX_GROWTH) ** (1 / 3)
    x, y, z = lesion.radii
    oedema = lesion.oedema_mm * k
    return replace(lesion, radii=(x * k, y * k, z * k), oedema_mm=oedema, age_days=age)


def _changed(lesion: Diffuse, days: float) -> Diffuse | None:
    """Atrophy goes on, oedema goes away, ventricles are drained."""
    if lesion.finding == "atrophy":
        power = 1 + ATROPHY_PER_DAY * days
    else:
        power = at(OEDEMA if lesion.finding == "oedema" else HYDROCEPHALUS, days)
    if power < 0.1:
        return None
    return replace(
        lesion,
        ventricle=lesion.ventricle**power,
        temporal_horn=lesion.temporal_horn**power,
        sulcus=lesion.sulcus**power,
        gap_mm=lesion.gap_mm * power,
        contrast=lesion.contrast**power,
        white_hu=lesion.white_hu * power,
        periventricular_hu=lesion.periventricular_hu * min(power, 1.0),
        age_days=lesion.age_days + days,
    )
