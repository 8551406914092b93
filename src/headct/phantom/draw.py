"""Draw each finding: place, side, size and HU, from severity 0 (subtle) to 1 and a little above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from headct.phantom.anatomy import Anatomy, vault_point
from headct.phantom.fields import Xyz
from headct.phantom.findings import (
    Bleed,
    Collection,
    Diffuse,
    Fracture,
    Infarct,
    Lesion,
    Mass,
    Side,
    Subarachnoid,
    VentricularBlood,
)
from headct.phantom.profile import DrawnFinding


def draw_lesion(
    rng: np.random.Generator, finding: DrawnFinding, severity: float, anatomy: Anatomy
) -> Lesion:
    """One finding in one patient."""
    return _DRAW[finding](rng, severity, anatomy)


def _side(rng: np.random.Generator) -> tuple[Side, float]:
    return ("right", 1.0) if rng.random() < 0.5 else ("left", -1.0)


def _between(low: float, high: float, severity: float) -> float:
    return low + (high - low) * severity


def _blood(rng: np.random.Generator, low: float, high: float, anatomy: Anatomy) -> float:
    return float(rng.uniform(low, high)) + 0.7 * anatomy.brain.fresh_blood_hu


def _edh(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    location = "temporal" if rng.random() < 0.6 else "parietal"
    up = rng.uniform(-0.15, 0.25) if location == "temporal" else rng.uniform(0.35, 0.8)
    centre = vault_point((sign, float(rng.uniform(-0.5, 0.5)), float(up)))
    return Collection(
        "edh",
        side,
        location,
        s,
        _blood(rng, 52, 69, anatomy),
        centre,
        thickness_mm=_between(6.5, 23, s),
        radius_mm=_between(20, 40, s),
        exponent=2,
        swirl_hu=float(rng.uniform(40, 50)) if rng.random() < 0.35 else 0.0,
    )


def _sdh(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    stage = str(rng.choice(["acute", "iso", "chronic"], p=[0.6, 0.18, 0.22]))
    if stage == "acute":
        hu = _blood(rng, 51, 66, anatomy)
    else:
        hu = float(rng.uniform(*((34, 48) if stage == "iso" else (14, 24))))
    centre = vault_point((sign, float(rng.uniform(-0.35, 0.35)), float(rng.uniform(0.2, 0.6))))
    return Collection(
        "sdh",
        side,
        stage,
        s,
        hu,
        centre,
        thickness_mm=_between(3, 12, s),
        radius_mm=_between(32, 66, s),
        exponent=4,
        swirl_hu=0.0,
    )


def _sah(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    location = str(rng.choice(["basal", "convexity", "diffuse"], p=[0.45, 0.35, 0.20]))
    side, sign = _side(rng)
    centre: Xyz = (0.0, 4.0, -14.0)
    radius = _between(26, 44, s)
    if location == "convexity":
        centre = vault_point((sign, float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.1, 0.8))))
    else:
        side = "both"
    if location == "diffuse":
        radius = _between(55, 85, s)
    hu = _blood(rng, 50, 64, anatomy)
    return Subarachnoid("sah", side, location, s, hu, centre, radius, min(1.0, _between(0.5, 1, s)))


def _iph(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    kind = rng.random()
    size = _between(7, 20, s)
    if kind < 0.5:
        location, centre = "basal ganglia", (sign * 24.0, 6.0, 6.0)
    elif kind < 0.88:
        location, centre = "lobar", _lobar(rng, sign, size)
    else:
        location, centre = "posterior fossa", (sign * 20.0, -50.0, -36.0)
        size = _between(7, 13, s)
    radii = tuple(float(size * k) for k in np.clip(rng.normal(1, 0.15, 3), 0.7, 1.3))
    return Bleed(
        "iph",
        side,
        location,
        s,
        _blood(rng, 50, 67, anatomy),
        _jittered(rng, centre, 3.0),
        (radii[0], radii[1], radii[2]),
        rim_mm=float(rng.uniform(3.5, 8)),
        rim_hu=float(rng.uniform(18, 23)),
    )


def _lobar(rng: np.random.Generator, sign: float, size_mm: float) -> Xyz:
    """A point of the white matter, deep enough for a lesion of this size."""
    wall = vault_point(
        (sign * float(rng.uniform(0.5, 1)), float(rng.uniform(-1, 1)), float(rng.uniform(0, 0.8)))
    )
    length = float(np.linalg.norm(wall))
    k = max(0.35, (length - size_mm - 9) / length)
    return wall[0] * k, wall[1] * k, wall[2] * k


def _jittered(rng: np.random.Generator, centre: Xyz, sd_mm: float) -> Xyz:
    x, y, z = np.asarray(centre) + np.clip(rng.normal(0, sd_mm, 3), -2 * sd_mm, 2 * sd_mm)
    return float(x), float(y), float(z)


def _ivh(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side: Side = "both"
    if rng.random() < 0.35:
        side, _ = _side(rng)
    level = _between(-47, 0, s) + float(rng.normal(0, 2))
    return VentricularBlood("ivh", side, "dependent", s, _blood(rng, 45, 62, anatomy), level)


_TERRITORY: dict[str, tuple[Xyz, Xyz]] = {
    "MCA": ((47.0, 4.0, 12.0), (28.0, 34.0, 30.0)),
    "ACA": ((9.0, 42.0, 28.0), (12.0, 34.0, 30.0)),
    "PCA": ((18.0, -58.0, 4.0), (18.0, 27.0, 22.0)),
    "cerebellar": ((28.0, -50.0, -38.0), (23.0, 22.0, 15.0)),
}


def _infarct(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    territory = str(rng.choice(list(_TERRITORY), p=[0.6, 0.1, 0.18, 0.12]))
    stage = str(rng.choice(["acute", "subacute", "chronic"], p=[0.4, 0.35, 0.25]))
    low, high = {"acute": (23, 27), "subacute": (16, 20), "chronic": (8, 12)}[stage]
    (x, y, z), radii = _TERRITORY[territory]
    size = _between(0.55, 1.0, s)
    hu = float(rng.uniform(low, high)) + anatomy.brain.white_hu - 28
    return Infarct(
        "infarct",
        side,
        f"{territory} {stage}",
        s,
        max(hu, 5.0),
        _jittered(rng, (sign * x, y, z), 3.0),
        (radii[0] * size, radii[1] * size, radii[2] * size),
        share=min(1.0, _between(0.65, 1, s)),
        stage=_stage(stage),
    )


def _stage(name: str) -> Literal["acute", "subacute", "chronic"]:
    return "acute" if name == "acute" else "subacute" if name == "subacute" else "chronic"


def _mass(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    size = _between(8, 20, s)
    radii = tuple(float(size * k) for k in np.clip(rng.normal(1, 0.1, 3), 0.8, 1.2))
    hu = float(rng.uniform(38, 52)) + anatomy.brain.white_hu - 28
    return Mass(
        "mass",
        side,
        "lobar",
        s,
        hu,
        _lobar(rng, sign, size + 3),
        (radii[0], radii[1], radii[2]),
        core_share=float(rng.uniform(0.45, 0.65)) if rng.random() < 0.5 else 0.0,
        core_hu=float(rng.uniform(12, 22)),
        oedema_mm=_between(8, 20, s),
        oedema_hu=float(rng.uniform(16, 21)),
    )


def _hydrocephalus(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    return Diffuse(
        "hydrocephalus",
        "both",
        "ventricles",
        s,
        anatomy.brain.csf_hu,
        ventricle=_between(1.4, 2.15, s),
        sulcus=_between(0.75, 0.45, s),
        periventricular_hu=-float(rng.uniform(3, 8)),
    )


def _atrophy(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    return Diffuse(
        "atrophy",
        "both",
        "whole brain",
        s,
        anatomy.brain.csf_hu,
        ventricle=_between(1.15, 1.6, s),
        sulcus=_between(1.3, 2.2, s) * float(rng.uniform(0.95, 1.05)),
        gap_mm=_between(0.7, 3.2, s),
    )


def _oedema(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    return Diffuse(
        "oedema",
        "both",
        "whole brain",
        s,
        anatomy.brain.white_hu,
        ventricle=_between(0.75, 0.35, s),
        sulcus=_between(0.6, 0.1, s),
        contrast_hu=max(1.5, _between(5.5, 1.5, s) + float(rng.normal(0, 0.3))),
        white_hu=-_between(1, 5, s),
    )


def _fracture(rng: np.random.Generator, s: float, anatomy: Anatomy) -> Lesion:
    side, sign = _side(rng)
    centre = vault_point((sign, float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.0, 0.7))))
    return fracture_at(rng, s, centre, side, anatomy)


def fracture_at(
    rng: np.random.Generator, severity: float, centre: Xyz, side: Side, anatomy: Anatomy
) -> Fracture:
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


_DRAW: dict[DrawnFinding, Callable[[np.random.Generator, float, Anatomy], Lesion]] = {
    "edh": _edh,
    "sdh": _sdh,
    "sah": _sah,
    "iph": _iph,
    "ivh": _ivh,
    "infarct": _infarct,
    "mass": _mass,
    "hydrocephalus": _hydrocephalus,
    "fracture": _fracture,
    "atrophy": _atrophy,
    "oedema": _oedema,
}
