"""What tube voltage and contrast medium do to the HU of tissues.

Source:
    NIST mass attenuation coefficients (ICRU-44 cortical bone, iodine, water, adipose) at effective
    energies behind a head: 49, 53, 60, 66 and 71 keV at 70, 80, 100, 120 and 140 kVp.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headct.phantom.anatomy import Brain, Skull
from headct.phantom.findings import Lesion, Mass

_KVP = (70, 80, 100, 120, 140)
_BONE = (1.56, 1.36, 1.12, 1.0, 0.905)
_IODINE = (1.92, 1.62, 1.24, 1.0, 0.84)
_FAT = (1.2, 1.14, 1.05, 1.0, 0.97)
"""Also for the difference between grey and white matter, which is one of lipid and water."""

OF_BLOOD = {"white": 0.02, "grey": 0.045, "dura": 0.3, "choroid": 0.6, "mass": 0.35}
"""Share of the enhancement of blood that a tissue takes up."""


def bone_factor(kvp: float) -> float:
    """HU of bone and other calcium, relative to 120 kVp."""
    return float(np.interp(kvp, _KVP, _BONE))


def iodine_factor(kvp: float) -> float:
    """HU of iodine, relative to 120 kVp."""
    return float(np.interp(kvp, _KVP, _IODINE))


def fat_factor(kvp: float) -> float:
    """HU of fat, relative to 120 kVp."""
    return float(np.interp(kvp, _KVP, _FAT))


def skull_at(skull: Skull, kvp: float) -> Skull:
    """The skull and scalp as a tube voltage shows them."""
    bone = bone_factor(kvp)
    return replace(
        skull,
        table_hu=skull.table_hu * bone,
        diploe_hu=skull.diploe_hu * bone,
        fat_hu=skull.fat_hu * fat_factor(kvp),
    )


def brain_at(brain: Brain, kvp: float, iodine_hu: float) -> Brain:
    """The brain as a tube voltage shows it, with blood enhanced by `iodine_hu`."""
    bone = bone_factor(kvp)
    contrast = (brain.grey_hu - brain.white_hu) * fat_factor(kvp)
    arteries = brain.arteries
    return replace(
        brain,
        white_hu=brain.white_hu + OF_BLOOD["white"] * iodine_hu,
        grey_hu=brain.white_hu + contrast + OF_BLOOD["grey"] * iodine_hu,
        falx_hu=brain.falx_hu + OF_BLOOD["dura"] * iodine_hu,
        sinus_hu=brain.sinus_hu + iodine_hu,
        choroid_hu=brain.choroid_hu + OF_BLOOD["choroid"] * iodine_hu,
        arteries=replace(
            arteries,
            hu=arteries.hu + iodine_hu,
            dense_hu=arteries.dense_hu + iodine_hu if arteries.dense_hu else 0.0,
            plaque_hu=arteries.plaque_hu * bone,
        ),
        calcifications=tuple(replace(c, hu=c.hu * bone) for c in brain.calcifications),
    )


def lesions_at(lesions: tuple[Lesion, ...], iodine_hu: float) -> tuple[Lesion, ...]:
    """Tumours take up contrast medium; their necrotic core, blood and infarcts do not."""
    return tuple(
        replace(lesion, hu=lesion.hu + OF_BLOOD["mass"] * iodine_hu)
        if isinstance(lesion, Mass)
        else lesion
        for lesion in lesions
    )
