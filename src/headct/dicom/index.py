"""Folders and files -> series: every file is read once, and every file gets an answer."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headct.dicom.enhanced import expand
from headct.dicom.header import FileOutcome, Header, read_header
from headct.dicom.kind import ENHANCED_CLASSES, check_kind
from headct.dicom.reasons import Reason
from headct.dicom.series import SeriesFiles
from headct.errors import UsageError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
MEMBERS = frozenset({Reason.EMPTY_FILE, Reason.TRUNCATED, Reason.UNREADABLE, Reason.NO_PERMISSION})
MEMBERS |= {Reason.NO_TRANSFER_SYNTAX}
"""What a damaged slice looks like when not even its series can be read."""


@dataclass(frozen=True)
class Index:
    """What lies in some folders.

    Attributes:
        series: DICOM series with at least one image, in order of first appearance.
        nifti: NIfTI files; each is a series of its own.
        outcomes: files that are in no series, each with its reason; also the damaged members of
            a series, which is refused for them.
        n_files: files seen.
    """

    series: list[SeriesFiles] = field(default_factory=list)
    nifti: list[Path] = field(default_factory=list)
    outcomes: list[FileOutcome] = field(default_factory=list)
    n_files: int = 0


def index_paths(sources: Sequence[Path]) -> Index:
    """Find the series in folders and files.

    Links are followed without going in circles, one file under two names is read once, pipes and
    devices are not opened. The answer does not depend on the order that the system lists files in.

    Raises:
        UsageError: a source does not exist.
    """
    headers: dict[str, list[Header]] = defaultdict(list)
    nifti: list[Path] = []
    outcomes: list[FileOutcome] = []
    n_files = 0
    for found in walk(sources):
        n_files += 1
        if isinstance(found, FileOutcome):
            outcomes.append(found)
        elif found.name.lower().endswith(NIFTI_SUFFIXES):
            nifti.append(found)
        else:
            images = read_images(found)
            if isinstance(images, FileOutcome):
                outcomes.append(images)
            else:
                headers[_series_key(images[0])].extend(images)
    damaged = _damaged_members(headers, outcomes)
    series = [SeriesFiles(tuple(found), tuple(damaged[uid])) for uid, found in headers.items()]
    return Index(series, nifti, outcomes, n_files)


def read_images(path: Path) -> list[Header] | FileOutcome:
    """The image records in one file (several for an enhanced image), or what became of it."""
    header = read_header(path)
    if isinstance(header, FileOutcome):
        return header
    fault = check_kind(header)
    if fault is not None and fault[0] in (Reason.NOT_IMAGE, Reason.TRUNCATED):
        series_uid = header.series_uid if header.modality == "CT" else ""
        return FileOutcome(path, *fault, series_uid=series_uid)
    if fault is None and header.sop_class in ENHANCED_CLASSES:
        return expand(header)
    return [header]


def walk(sources: Sequence[Path]) -> Iterator[Path | FileOutcome]:
    """Regular files under the sources, each once, in a fixed order.

    Raises:
        UsageError: a source does not exist.
    """
    seen: set[tuple[int, int]] = set()
    for source in sources:
        if not os.path.lexists(source):
            raise UsageError("a source folder or file does not exist", remedy="check the path")
        pending = [Path(source)]
        while pending:
            path = pending.pop()
            try:
                status = path.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                if stat.S_ISDIR(status.st_mode):
                    pending.extend(sorted(path.iterdir(), reverse=True))
                elif stat.S_ISREG(status.st_mode):
                    yield path
                else:
                    yield FileOutcome(path, Reason.SPECIAL_FILE)
            except OSError as error:
                lost_link = error.errno in (errno.ENOENT, errno.ELOOP)
                yield FileOutcome(path, Reason.SPECIAL_FILE if lost_link else Reason.NO_PERMISSION)


def _series_key(header: Header) -> str:
    """Images without a series UID are grouped with nothing else."""
    return header.series_uid or f"file\0{os.fspath(header.path)}"


def _damaged_members(
    headers: dict[str, list[Header]], outcomes: Sequence[FileOutcome]
) -> dict[str, list[FileOutcome]]:
    """Damaged files by the series that they belong to, by UID, else by folder and name pattern.

    A slice with an unreadable header does not name its series. Where it is called like the slices
    of a series in the same folder (digits apart), it is taken for one of them: a volume is refused
    rather than shortened.
    """
    damaged: dict[str, list[FileOutcome]] = defaultdict(list)
    lost = [outcome for outcome in outcomes if outcome.reason in MEMBERS]
    if not lost:
        return damaged
    by_pattern: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for uid, images in headers.items():
        for header in images:
            by_pattern[_pattern(header.path)].add(uid)
    for outcome in lost:
        uids = {outcome.series_uid} if outcome.series_uid else by_pattern[_pattern(outcome.path)]
        for uid in uids & headers.keys():
            damaged[uid].append(outcome)
    return damaged


def _pattern(path: Path) -> tuple[Path, str]:
    return path.parent, re.sub(r"\d+", "#", path.name)
