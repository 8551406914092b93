"""The DICOM series of a published set, in folders or in the archives that it is handed out in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headct.dicom.index import Index, index_paths
from headct.dicom.spool import spooling
from headct.errors import LabelError
from headct.workers import cores


def index_dicom(sources: Sequence[Path], work: Path | None = None) -> Index:
    """The series in folders and archives, as ingest finds them; pixels are not read.

    Args:
        sources: folders, files, zip and tar archives.
        work: folder that archives are unpacked into for the while; None for the system's own.

    Raises:
        LabelError: no DICOM image among the files.
    """
    with spooling(work, "labels") as spool:
        index = index_paths(sources, spool=spool, jobs=cores())
    if not index.series:
        raise LabelError(
            f"no DICOM image among {index.n_files} files", remedy="give the folder of the set"
        )
    return index
