"""BHSD: NIfTI scans and masks of five kinds of bleed -> one row per scan.

`images/ID_<patient>_ID_<study>.nii.gz`, and masks of the same names in `ground truths/`. Which
number in a mask is which bleed was taken from the authors' paper, not checked on the data: see
CLASSES. A scan is named as ingest names it: by the bytes of its file.
Source: B. Wu et al., arXiv 2308.11298.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from headct.dicom.header import patient_key
from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError, UsageError
from headct.labels.nifti_set import UNREADABLE, nifti_name, nifti_shape
from headct.labels.table import Labelled, Row, once_each
from headct.labels.vocabulary import Value, shared_name

CLASSES = {1: "edh", 2: "iph", 3: "ivh", 4: "sah", 5: "sdh"}
"""Assumed: the order in which the authors name them."""
MASKS = ("ground truths", "ground_truths", "masks", "labels")


def read_classes(text: str) -> dict[int, str]:
    """`1=edh,2=iph,...` -> what the numbers of a mask mean.

    Raises:
        UsageError: another form, or a number or finding twice.
        LabelError: a finding that the vocabulary does not know.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(number.strip().isdecimal() and name for number, _, name in pairs):
        raise UsageError(
            "--classes wants number=finding", remedy="e.g. 1=edh,2=iph,3=ivh,4=sah,5=sdh"
        )
    classes = {int(number): shared_name(name) for number, _, name in pairs}
    if len(set(classes.values())) < len(pairs) or 0 in classes:
        raise UsageError("--classes names a number or finding twice, or 0", remedy="mend it")
    return classes


def read_bhsd(root: Path, key: bytes, classes: Mapping[int, str] = CLASSES) -> Labelled:
    """One row per image with a mask; a bleed is present where the mask has a voxel of its number.

    Raises:
        LabelError: no images and masks, a mask with other numbers, or of another shape.
    """
    masks = next((root / name for name in MASKS if (root / name).is_dir()), None)
    if masks is None or not (root / "images").is_dir():
        raise LabelError(
            f"no BHSD set: it has images/ and {MASKS[0]!r}",
            remedy="give the folder that holds both, e.g. label_192",
        )
    names = Pseudonymizer(key)
    images = sorted((root / "images").glob("*.nii*"))
    labelled = [path for path in images if (masks / path.name).is_file()]
    once, notes = once_each(
        Row(nifti_name(path, names), _patient(path, names), _values(path, masks, classes))
        for path in labelled
    )
    counts = {
        "images have no mask: left out": len(images) - len(labelled),
        "masks have no image": len(list(masks.glob("*.nii*"))) - len(labelled),
    }
    notes += [f"{n} {what}" for what, n in counts.items() if n]
    order = ", ".join(f"{number} {name}" for number, name in classes.items())
    notes.append(f"numbers in the masks are taken for: {order}" + " (--classes changes it)")
    return Labelled("scan_id", once, len(labelled), notes)


def _patient(path: Path, names: Pseudonymizer) -> str:
    """`ID_<patient>_ID_<study>`; named as in DICOM, for the scans are from RSNA 2019."""
    stem = path.name.split(".")[0]
    patient = "_".join(stem.split("_")[:2]) if stem.count("_") == 3 else stem
    return names.patient_id(patient_key(patient))


def _values(image: Path, masks: Path, classes: Mapping[int, str]) -> dict[str, Value]:
    try:
        mask = np.asanyarray(nib.load(masks / image.name).dataobj)
    except UNREADABLE as error:
        raise LabelError("a mask cannot be read", remedy="fetch the set again") from error
    numbers = set(np.unique(mask).tolist())
    if not numbers <= {0, *classes} or mask.shape != nifti_shape(image):
        raise LabelError(
            f"a mask has other numbers than 0, {', '.join(map(str, classes))}, or another shape"
            " than its image",
            remedy="give the masks as published, and all their numbers with --classes",
        )
    found: dict[str, Value] = {name: int(number in numbers) for number, name in classes.items()}
    return {"ich": int(len(numbers) > 1)} | found
