"""Draw haemorrhages: how many, where, how old and how dense. Their size follows in `sizing`."""

from __future__ import annotations

import numpy as np

from headct.phantom.anatomy import Anatomy, vault_point
from headct.phantom.fields import Xyz
from headct.phantom.findings import (
    Bleed,
    Collection,
    Lesion,
    Side,
    Subarachnoid,
    VentricularBlood,
)
from headct.phantom.volumes import volume_ml

Rng = np.random.Generator
POSTERIOR_FOSSA_ML = 12.0
"""No bleed of the cerebellum is larger."""
ONE_SIDED_ML = 6.0
"""Larger bleeds into the ventricles reach both sides."""
DIFFUSE_ML = 8.0
"""A larger subarachnoid bleed from the basal cisterns is everywhere."""
BILATERAL = 0.22
"""Share of patients with a subdural haematoma who have one on each side."""


def side_of(rng: Rng) -> tuple[Side, float]:
    """A side, and the sign of its x."""
    return ("right", 1.0) if rng.random() < 0.5 else ("left", -1.0)


def fresh_hu(rng: Rng, low: float, high: float, anatomy: Anatomy) -> float:
    """HU of clotted blood in a patient with this haematocrit."""
    return float(rng.uniform(low, high)) + 0.7 * anatomy.brain.fresh_blood_hu


def shares(rng: Rng, n: int) -> list[float]:
    """How a volume is shared among n lesions, in descending order."""
    return sorted((float(v) for v in rng.dirichlet([2.0] * n)), reverse=True)


def draw_edh(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Epidural haematoma, mostly temporal; unclotted blood swirls in some."""
    side, sign = side_of(rng)
    location = "temporal" if rng.random() < 0.6 else "parietal"
    up = rng.uniform(-0.15, 0.25) if location == "temporal" else rng.uniform(0.35, 0.8)
    ml = volume_ml("edh", s)
    found = Collection(
        "edh",
        side,
        location,
        s,
        fresh_hu(rng, 50, 69, anatomy),
        vault_point((sign, float(rng.uniform(-0.5, 0.5)), float(up))),
        thickness_mm=4.8 * ml**0.42 * float(rng.uniform(0.85, 1.15)),
        radius_mm=11.5 * ml**0.29,
        exponent=2,
        swirl_hu=float(rng.uniform(40, 50)) if rng.random() < 0.35 else 0.0,
        age_days=float(rng.uniform(0, 2)),
        volume_ml=ml,
    )
    return (found,)


_SDH_AGES: dict[str, tuple[float, float]] = {
    "acute": (0.0, 4.0),
    "iso": (6.0, 15.0),
    "chronic": (25.0, 50.0),
    "mixed": (0.5, 5.0),
}


def draw_sdh(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Subdural haematoma on one side or both; fresh blood may lie below old fluid in it."""
    side, sign = side_of(rng)
    bilateral = rng.random() < BILATERAL
    total = volume_ml("sdh", s)
    parts = shares(rng, 2) if bilateral else [1.0]
    found = []
    for share in parts:
        stage = str(rng.choice(list(_SDH_AGES), p=[0.58, 0.16, 0.14, 0.12]))
        found.append(_one_sdh(rng, s, anatomy, side, sign, stage, total * share))
        side, sign = ("left" if side == "right" else "right"), -sign
    return tuple(found)


def _one_sdh(
    rng: Rng, s: float, anatomy: Anatomy, side: Side, sign: float, stage: str, ml: float
) -> Collection:
    centre = vault_point((sign, float(rng.uniform(-0.35, 0.35)), float(rng.uniform(0.2, 0.6))))
    return Collection(
        "sdh",
        side,
        "frontal" if centre[1] > 25 else "parietal" if centre[1] < -15 else "frontoparietal",
        s,
        fresh_hu(rng, 51, 68, anatomy),
        centre,
        thickness_mm=3.0 * ml**0.25 * float(rng.uniform(0.8, 1.25)),
        radius_mm=12.6 * ml**0.375,
        exponent=4,
        serum_hu=float(rng.uniform(16, 28)) if stage == "mixed" else 0.0,
        level_mm=centre[1] + float(rng.uniform(-12, 8)),
        stage=stage,
        age_days=float(rng.uniform(*_SDH_AGES[stage])),
        volume_ml=ml,
    )


def draw_sah(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Blood in basal cisterns or in the sulci of the convexity, and in both where it is much."""
    location = "basal" if rng.random() < 0.55 else "convexity"
    side, sign = side_of(rng)
    centre: Xyz = (0.0, 4.0, -14.0)
    ml = volume_ml("sah", s)
    if location == "convexity":
        centre = vault_point((sign, float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.1, 0.8))))
    elif ml > DIFFUSE_ML:
        location = "diffuse"
    if location != "convexity":
        side = "both"
    hu = fresh_hu(rng, 50, 62, anatomy)
    age = float(rng.exponential(0.8))
    found = Subarachnoid(
        "sah",
        side,
        location,
        s,
        hu,
        centre,
        radius_mm=1.0,
        patchy=ml < DIFFUSE_ML,
        age_days=min(age, 4.0),
        volume_ml=ml,
    )
    return (found,)


def draw_iph(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Bleeds into the brain: mostly one; contusions and amyloid make several."""
    total = volume_ml("iph", s)
    n = int(rng.choice([1, 2, 3, 4], p=[0.76, 0.13, 0.07, 0.04]))
    hu = fresh_hu(rng, 50, 65, anatomy)
    age = float(min(rng.exponential(5.0), 20.0))
    found: list[Bleed] = []
    for share in shares(rng, n):
        for _ in range(12):  # two bleeds lie apart, if that can be
            bleed = _one_iph(rng, s, hu + float(rng.normal(0, 1)), age, total * share, n > 1)
            if all(_apart(bleed, other) for other in found):
                break
        found.append(bleed)
    return tuple(found)


def _one_iph(rng: Rng, s: float, hu: float, age: float, ml: float, lobar: bool) -> Bleed:
    side, sign = side_of(rng)
    size = 1.1 * float(np.cbrt(3000 * ml / (4 * np.pi)))
    kind = 0.6 if lobar else rng.random()
    location, centre = "lobar", lobar_point(rng, sign, size)
    if kind < 0.5:
        location, centre = "basal ganglia", (sign * max(24.0, 0.9 * size + 3), 6.0, 8.0)
    elif kind > 0.88 and ml < POSTERIOR_FOSSA_ML:
        location, centre = "posterior fossa", (sign * 20.0, -50.0, -36.0)
    radii = tuple(float(k) for k in np.clip(rng.normal(1, 0.17, 3), 0.7, 1.4))
    return Bleed(
        "iph",
        side,
        location,
        s,
        hu,
        jittered(rng, centre, 3.0),
        (radii[0], radii[1], radii[2]),
        rim_mm=float(rng.uniform(0.25, 0.5)) * max(size, 6.0),
        rim_hu=float(rng.uniform(18, 23)),
        age_days=age,
        volume_ml=ml,
    )


def _apart(one: Bleed, other: Bleed) -> bool:
    reach = sum(float(np.cbrt(3000 * bleed.volume_ml / (4 * np.pi))) for bleed in (one, other))
    return float(np.linalg.norm(np.subtract(one.centre, other.centre))) > 1.2 * reach


def lobar_point(rng: Rng, sign: float, size_mm: float) -> Xyz:
    """A point of the white matter, deep enough for a lesion of this size."""
    wall = vault_point(
        (sign * float(rng.uniform(0.5, 1)), float(rng.uniform(-1, 1)), float(rng.uniform(0, 0.8)))
    )
    length = float(np.linalg.norm(wall))
    k = max(0.35, (length - size_mm - 9) / length)
    return wall[0] * k, wall[1] * k, wall[2] * k


def jittered(rng: Rng, centre: Xyz, sd_mm: float) -> Xyz:
    """A point near another one."""
    x, y, z = np.asarray(centre) + np.clip(rng.normal(0, sd_mm, 3), -2 * sd_mm, 2 * sd_mm)
    return float(x), float(y), float(z)


def draw_ivh(rng: Rng, s: float, anatomy: Anatomy) -> tuple[Lesion, ...]:
    """Blood in one lateral ventricle or in all."""
    side: Side = "both"
    ml = volume_ml("ivh", s)
    if rng.random() < 0.4 and ml < ONE_SIDED_ML:
        side, _ = side_of(rng)
    hu = fresh_hu(rng, 45, 66, anatomy)
    age = float(min(rng.exponential(5.5), 14.0))
    found = VentricularBlood("ivh", side, "dependent", s, hu, 0.0, age_days=age, volume_ml=ml)
    return (found,)
