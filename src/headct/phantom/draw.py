"""Draw each finding: place, side, size and HU, from severity 0 (subtle) to 1 and a little above."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headct.phantom.anatomy import Anatomy, vault_point
from headct.phantom.draw_blood import (
    Rng,
    draw_edh,
    draw_iph,
    draw_ivh,
    draw_sah,
    draw_sdh,
    jittered,
    lobar_point,
    side_of,
)
from headct.phantom.fields import Xyz
from headct.phantom.findings import Diffuse, Fracture, Infarct, Lesion, Mass, Side
from headct.phantom.profile import DrawnFinding


def draw_lesions(
    rng: Rng, finding: DrawnFinding, severity: float, anatomy: Anatomy
) -> tuple[Lesion, ...]:
    """One finding in one patient, as it was when it came about: one lesion or several.

    Haemorrhages have a volume but no extent yet, see `sizing.sized`; infarcts an offset of HU to
    that of their age, see `course.aged`.
    """
    return _DRAW[finding](rng, severity, anatomy)


def _between(low: float, high: float, severity: float) -> float:
    return low + (high - low) * severity


_TERRITORY: dict[str, tuple[Xyz, Xyz]] = {
    "MCA": ((47.0, 4.0, 12.0), (28.0, 34.0, 30.0)),
    "ACA": ((9.0, 42.0, 28.0), (12.0, 34.0, 30.0)),
    "PCA": ((18.0, -58.0, 4.0), (18.0, 27.0, 22.0)),
    "cerebellar": ((28.0, -50.0, -38.0), (23.0, 22.0, 15.0)),
}


_INFARCT_AGES: dict[str, tuple[float, float]] = {
    "hyperacute": (0.08, 0.28),
    "acute": (0.4, 2.5),
    "subacute": (3.0, 14.0),
    "chronic": (60.0, 400.0),
}


def _infarct(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """A territory, or several small emboli of one age."""
    stage = str(rng.choice(list(_INFARCT_AGES), p=[0.12, 0.33, 0.32, 0.23]))
    age = float(rng.uniform(*_INFARCT_AGES[stage]))
    offset = float(rng.normal(0, 1.2)) + anatomy.brain.white_hu - 28
    several = rng.random() < 0.2
    found = []
    for _ in range(int(rng.integers(2, 5)) if several else 1):
        side, sign = side_of(rng)
        territory = str(rng.choice(list(_TERRITORY), p=[0.6, 0.1, 0.18, 0.12]))
        (x, y, z), radii = _TERRITORY[territory]
        size = _between(0.55, 1.0, s) * (float(rng.uniform(0.4, 0.65)) if several else 1.0)
        lesion = Infarct(
            "infarct",
            side,
            territory,
            s,
            offset,
            jittered(rng, (sign * x, y, z), 8.0 if several else 3.0),
            (radii[0] * size, radii[1] * size, radii[2] * size),
            share=min(1.0, _between(0.75, 1, s)),
            swelling=1.0,
            stage=stage,
            age_days=age,
        )
        found.append(lesion)
    return tuple(found)


def _mass(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """A primary tumour, or metastases."""
    several = rng.random() < 0.28
    n = int(rng.integers(2, 6)) if several else 1
    hu = float(rng.uniform(38, 52)) + anatomy.brain.white_hu - 28
    core = rng.random() < 0.5
    found: list[Mass] = []
    for _ in range(n):
        size = _between(8, 20, s) * (float(rng.uniform(0.35, 0.7)) if several else 1.0)
        for _ in range(8):  # metastases lie apart, if that can be
            mass = _one_mass(rng, s, hu, size, core)
            gaps = [np.linalg.norm(np.subtract(mass.centre, other.centre)) for other in found]
            if all(gap > 3 * size for gap in gaps):
                break
        found.append(mass)
    return tuple(found)


def _one_mass(rng: Rng, s: float, hu: float, size: float, core: bool) -> Mass:
    side, sign = side_of(rng)
    radii = tuple(float(size * k) for k in np.clip(rng.normal(1, 0.1, 3), 0.8, 1.2))
    return Mass(
        "mass",
        side,
        "lobar",
        s,
        hu,
        lobar_point(rng, sign, size + 3),
        (radii[0], radii[1], radii[2]),
        core_share=float(rng.uniform(0.45, 0.65)) if core else 0.0,
        core_hu=float(rng.uniform(12, 22)),
        oedema_mm=_between(8, 20, s) * min(1.0, size / 10),
        oedema_hu=float(rng.uniform(16, 21)),
    )


def _hydrocephalus(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    found = Diffuse(
        "hydrocephalus",
        "both",
        "ventricles",
        s,
        anatomy.brain.csf_hu,
        ventricle=_between(1.25, 1.95, s),
        sulcus=_between(0.9, 0.55, s),
        periventricular_hu=-float(rng.uniform(3, 8)),
    )
    return (found,)


def _atrophy(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    found = Diffuse(
        "atrophy",
        "both",
        "whole brain",
        s,
        anatomy.brain.csf_hu,
        ventricle=_between(1.08, 1.35, s),
        temporal_horn=_between(1.7, 2.6, s),
        sulcus=_between(1.1, 1.5, s) * float(rng.uniform(0.95, 1.05)),
        gap_mm=_between(0.1, 0.5, s),
    )
    return (found,)


def _oedema(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    found = Diffuse(
        "oedema",
        "both",
        "whole brain",
        s,
        anatomy.brain.white_hu,
        ventricle=_between(0.9, 0.5, s),
        sulcus=_between(0.85, 0.35, s),
        contrast=_between(0.95, 0.6, s) * float(rng.uniform(0.95, 1.05)),
        white_hu=-_between(0.0, 1.5, s),
    )
    return (found,)


def _fracture(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    side, sign = side_of(rng)
    centre = vault_point((sign, float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.0, 0.7))))
    return (fracture_at(rng, s, centre, side, anatomy),)


def fracture_at(rng: Rng, severity: float, centre: Xyz, side: Side, anatomy: Anatomy) -> Fracture:
    """A fracture through a given point of the vault, as under an epidural haematoma."""
    outward = np.asarray(centre) / np.linalg.norm(centre)
    along = np.cross(outward, rng.standard_normal(3))
    nx, ny, nz = along / np.linalg.norm(along)
    location = (
        "frontal" if centre[1] > 40 else "occipital" if centre[1] < -40 else "temporoparietal"
    )
    return Fracture(
        "fracture",
        side,
        location,
        severity,
        anatomy.skull.muscle_hu,
        centre,
        (float(nx), float(ny), float(nz)),
        width_mm=_between(1.5, 3.5, severity),
        length_mm=_between(25, 50, severity),
        swelling_mm=_between(4, 9, severity) if rng.random() < 0.75 else 0.0,
    )


_DRAW: dict[DrawnFinding, Callable[[Rng, float, Anatomy], tuple[Lesion, ...]]] = {
    "edh": draw_edh,
    "sdh": draw_sdh,
    "sah": draw_sah,
    "iph": draw_iph,
    "ivh": draw_ivh,
    "infarct": _infarct,
    "mass": _mass,
    "hydrocephalus": _hydrocephalus,
    "fracture": _fracture,
    "atrophy": _atrophy,
    "oedema": _oedema,
}
