"""What the importers of NIfTI sets share: names and shapes of files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError

from headct.dicom.pseudonym import Pseudonymizer
from headct.errors import LabelError
from headct.volume.nifti import content_hash

UNREADABLE = (ImageFileError, OSError, EOFError, ValueError)


def nifti_name(path: Path, names: Pseudonymizer) -> str:
    """The scan_id that ingest gives to a NIfTI file: it follows from the bytes."""
    return names.scan_id(content_hash(path))


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Voxels per axis, from the header.

    Raises:
        LabelError: the file is no NIfTI volume.
    """
    try:
        shape = tuple(int(n) for n in nib.load(path).shape)
    except UNREADABLE as error:
        raise LabelError("an image cannot be read", remedy="fetch the set again") from error
    if len(shape) != 3:
        raise LabelError("an image has other than three axes", remedy="give single volumes")
    return shape
