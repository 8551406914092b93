"""Folders and files -> series: every file is read once, and every file gets an answer."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from headct.dicom.archives import unpack
from headct.dicom.compressed import NIFTI_SUFFIXES as NIFTI_SUFFIXES
from headct.dicom.compressed import is_named_archive, kind_of_archive
from headct.dicom.enhanced import expand
from headct.dicom.header import FileOutcome, Header, read_header
from headct.dicom.kind import ENHANCED_CLASSES, check_kind
from headct.dicom.lost import find_losses
from headct.dicom.reasons import Reason
from headct.dicom.series import SeriesFiles
from headct.errors import UsageError
from headct.progress import tracking
from headct.workers import run_in_order

PARALLEL_FROM = 20_000
"""Files from which on several processes are worth their start."""
CHUNK = 500
SIDECARS = (".json", ".tsv")
"""Of NIfTI files: they say how a scan was made, and are asked when all files are known."""


@dataclass(frozen=True)
class Index:
    """What lies in some folders.

    Attributes:
        series: DICOM series with at least one image, in order of first appearance.
        nifti: NIfTI files; each is a series of its own.
        outcomes: files that are in no series, each with its reason; also the damaged members of
            a series, which is refused for them.
        n_files: files seen, those in archives one by one.
        places: of files that came out of an archive, the path of the archive and their name in it.
    """

    series: list[SeriesFiles] = field(default_factory=list)
    nifti: list[Path] = field(default_factory=list)
    outcomes: list[FileOutcome] = field(default_factory=list)
    n_files: int = 0
    places: dict[Path, Path] = field(default_factory=dict, repr=False)

    def place(self, path: Path) -> Path:
        """Where the user has a file: in a folder, or in an archive."""
        return self.places.get(path, path)


def index_paths(sources: Sequence[Path], *, spool: Path | None = None, jobs: int = 0) -> Index:
    """Find the series in folders and files.

    Links are followed without going in circles, one file under two names is read once, pipes and
    devices are not opened. The answer depends neither on the order that the system lists files in
    nor on the number of processes.

    Args:
        sources: folders of any layout, and files.
        spool: folder that archives (zip, tar, gzip, ...) are unpacked into, to be removed by the
            caller; without it an archive is a file that is not DICOM.
        jobs: processes; they are used where there are many files.

    Raises:
        UsageError: a source does not exist.
    """
    headers: dict[str, list[Header]] = defaultdict(list)
    index = Index()
    n_files = 0
    for reading in _read_all(list(walk(sources)), spool, jobs):
        n_files += 1
        if reading.place is not None:
            index.places[reading.path] = reading.place
        if reading.found is None:
            index.nifti.append(reading.path)
        elif isinstance(reading.found, FileOutcome):
            index.outcomes.append(reading.found)
        else:
            headers[_series_key(reading.found[0])].extend(reading.found)
    losses = find_losses(headers, index.outcomes, index.place)
    series = [
        SeriesFiles(tuple(found), tuple(losses.shown.get(uid, ())), losses.possible.get(uid, 0))
        for uid, found in headers.items()
    ]
    return replace(index, series=series, n_files=n_files)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One file: image records, None for NIfTI, or what became of it; its place in an archive."""

    path: Path
    found: list[Header] | FileOutcome | None
    place: Path | None = None


def _read_all(
    walked: Sequence[Path | FileOutcome], spool: Path | None, jobs: int
) -> Iterator[_Reading]:
    read = partial(_read_chunk, spool)
    n_archives = sum(isinstance(path, Path) and is_named_archive(path) for path in walked)
    if jobs < 2 or len(walked) + (n_archives > 1) * PARALLEL_FROM < PARALLEL_FROM:
        yield from read(walked)
        return
    size = CHUNK if n_archives < 2 else max(1, min(CHUNK, len(walked) // (8 * jobs)))
    chunks = [walked[start : start + size] for start in range(0, len(walked), size)]
    with tracking("index", total=len(walked), unit="files") as tracker:
        for chunk, readings in zip(chunks, run_in_order(read, chunks, jobs), strict=True):
            yield from readings
            tracker.advance(len(chunk))


def _read_chunk(spool: Path | None, walked: Sequence[Path | FileOutcome]) -> list[_Reading]:
    return [reading for found in walked for reading in _read(found, spool)]


def _read(found: Path | FileOutcome, spool: Path | None) -> Iterator[_Reading]:
    if isinstance(found, FileOutcome):
        yield _Reading(found.path, found)
        return
    answer = _answer(found)
    is_other = isinstance(answer, FileOutcome) and answer.reason in (
        Reason.NOT_DICOM,
        Reason.UNREADABLE,
    )
    if is_other and spool is not None and kind_of_archive(found) is not None:
        yield from _read_archive(found, spool)
    elif is_other and spool is not None and is_named_archive(found):
        message = "named like an archive, but it is none"
        yield _Reading(found, FileOutcome(found, Reason.UNREADABLE, message))
    else:
        yield _Reading(found, answer)


def _answer(path: Path) -> list[Header] | FileOutcome | None:
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return None
    answer = read_images(path)
    if isinstance(answer, FileOutcome) and answer.reason == Reason.NOT_DICOM:
        return _nifti_by_content(path, answer)
    return answer


def _nifti_by_content(path: Path, answer: FileOutcome) -> FileOutcome | None:
    """None for a NIfTI file of any name; the header of a pair is refused; else the answer."""
    try:
        with path.open("rb") as handle:
            head = handle.read(348)
    except OSError:
        return answer
    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    magic = head[4:7] if 540 in size else head[344:347]
    if magic in (b"n+1", b"n+2") and size & {348, 540}:
        return None
    if (348 in size and len(head) == 348) or magic == b"ni2":
        message = "the header of a NIfTI or Analyze pair; convert the pair to one .nii file"
        return FileOutcome(path, Reason.UNREADABLE, message)
    return answer


def _read_archive(path: Path, spool: Path) -> Iterator[_Reading]:
    """Everything in an archive; what is neither an image nor beside one does not stay unpacked."""
    unpacked = unpack(path, Path(mkdtemp(dir=spool)))
    for outcome in unpacked.outcomes:
        yield _Reading(outcome.path, outcome)
    for file, place in unpacked.files:
        answer = _answer(file)
        if isinstance(answer, FileOutcome):
            answer = replace(answer, path=place)
            if place.name.lower().endswith(SIDECARS):
                yield _Reading(file, answer, place)
            else:
                file.unlink()
                yield _Reading(place, answer)
        else:
            yield _Reading(file, answer, place)


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
