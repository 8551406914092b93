"""Zip, tar and compressed files -> plain files in a folder of ours; bombs and traps are refused.

The names in an archive are never used as paths: what is unpacked gets a number for a name.
"""

from __future__ import annotations

import errno
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from headct.dicom.compressed import (
    NIFTI_SUFFIXES,
    STREAMS,
    BombError,
    Budget,
    Metered,
    StrictTarInfo,
    decompressed,
    kind_of_archive,
)
from headct.dicom.header import DICOM_SUFFIXES, FileOutcome, read_header
from headct.dicom.reasons import Reason, reason_of
from headct.errors import HeadctError, Refusal

MAX_DEPTH = 3
"""An archive in an archive in an archive is opened; one more is not."""
MAX_RATIO = 100
FREE_BYTES = 512 << 20
"""Unpacked bytes may be 100 times those of the archive, and half a gigabyte come free: CT packs
to a third or less, an empty image to a hundredth."""
COPY_BYTES = 1 << 20

BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
DAMAGE = (*BROKEN, EOFError, ValueError, OverflowError, RuntimeError)
"""What the readers raise at a file that is not as it should be."""


@dataclass
class Unpacked:
    """What came out of one archive.

    Attributes:
        files: plain files, each with its place: path of the archive, then names inside it.
        outcomes: members that gave no file; their paths are places.
    """

    files: list[tuple[Path, Path]] = field(default_factory=list)
    outcomes: list[FileOutcome] = field(default_factory=list)


def unpack(path: Path, folder: Path) -> Unpacked:
    """Unpack an archive, and archives in it, into an empty folder.

    An archive that is damaged, cut off or a bomb gives nothing but its reason; a member that is
    encrypted, or whose name leads out of its folder, is refused by itself. Links are not followed.

    Raises:
        HeadctError: the disk of the folder is full.
    """
    found = Unpacked()
    budget = Budget(FREE_BYTES + MAX_RATIO * path.stat().st_size)
    try:
        _Unpacker(folder, found, budget).open(path, path, 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return Unpacked(outcomes=[FileOutcome(path, Reason.NO_PERMISSION, "cannot be read")])
        raise HeadctError(
            "the disk is full with what came out of an archive",
            code="work-full",
            remedy="give --work a folder on a larger disk, or ingest the archives in several calls",
        ) from error
    return found


class _Unpacker:
    """Writes members under numbers into one folder; all archives within share one budget."""

    def __init__(self, folder: Path, found: Unpacked, budget: Budget) -> None:
        self.folder, self.found, self.budget = folder, found, budget
        self.places: Counter[Path] = Counter()
        self.numbers = count()

    def open(self, path: Path, place: Path, depth: int) -> None:
        """Unpack one archive; where that fails, all that came from it is taken back."""
        n_files, n_outcomes = len(self.found.files), len(self.found.outcomes)
        try:
            self._open(path, place, depth)
        except (BombError, Refusal, *DAMAGE) as error:
            for file, _ in self.found.files[n_files:]:
                file.unlink()
            del self.found.files[n_files:], self.found.outcomes[n_outcomes:]
            self._refuse(place, *_fault(error, "a damaged archive"))

    def _open(self, path: Path, place: Path, depth: int) -> None:
        kind = kind_of_archive(path)
        if kind is None:
            raise Refusal("named like an archive, but it is none", code=Reason.UNREADABLE)
        if depth > MAX_DEPTH:
            raise Refusal("archives in archives, too deep", code=Reason.UNSUPPORTED_ARCHIVE)
        if kind == "zip":
            self._zip(path, place, depth)
        elif kind in STREAMS:
            self._stream(path, kind, place, depth)
        else:
            raise Refusal(f"{kind} archives are not opened", code=Reason.UNSUPPORTED_ARCHIVE)

    def _zip(self, path: Path, place: Path, depth: int) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile:
            raise Refusal("the zip file has no directory", code=Reason.TRUNCATED) from None
        with archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                inside = self._place(place, info.filename)
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                    self._refuse(inside, Reason.SPECIAL_FILE, "")
                elif info.flag_bits & 1:
                    self._refuse(inside, Reason.ENCRYPTED, "")
                else:
                    self._member(partial(archive.open, info), info.filename, inside, depth)

    def _stream(self, path: Path, kind: str, place: Path, depth: int) -> None:
        with path.open("rb") as handle:
            plain = io.BufferedReader(Metered(decompressed(handle, kind), self.budget), 1 << 16)
            name = path.name.lower()
            is_tar = plain.peek(512)[257:262] == b"ustar"
            if is_tar or ".tar." in name or name.endswith((".tar", ".tgz", ".tbz2", ".txz")):
                self._tar(plain, place, depth)
                while plain.read(COPY_BYTES):  # the checksum is at the end
                    pass
            else:
                self._member(lambda: plain, place.stem, place, depth)

    def _tar(self, plain: BinaryIO, place: Path, depth: int) -> None:
        with tarfile.open(fileobj=plain, mode="r|", tarinfo=StrictTarInfo) as archive:
            for info in archive:
                if info.isdir():
                    continue
                inside = self._place(place, info.name)
                source = archive.extractfile(info) if info.isreg() else None
                if source is None:
                    self._refuse(inside, Reason.SPECIAL_FILE, "")
                else:
                    self._write(source, self._target(info.name), inside, info.name, depth)

    def _member(self, opened: Callable[[], Any], name: str, place: Path, depth: int) -> None:
        """Write one member that can be damaged without harm to the others."""
        target = self._target(name)
        try:
            self._write(opened(), target, place, name, depth)
        except (NotImplementedError, *DAMAGE) as error:
            self._refuse(place, *_fault(error, "a damaged member of an archive"))

    def _target(self, name: str) -> Path:
        self.budget.take_member()
        return self.folder / f"{next(self.numbers):06d}{_safe_suffix(name)}"

    def _write(self, source: Any, target: Path, place: Path, name: str, depth: int) -> None:
        try:
            with source, target.open("xb") as handle:
                while block := source.read(COPY_BYTES):
                    self.budget.take(len(block))
                    handle.write(block)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        self._take(target, place, name, depth)

    def _take(self, target: Path, place: Path, name: str, depth: int) -> None:
        if ".." in PurePosixPath(name.replace("\\", "/")).parts:
            header = read_header(target)
            self._refuse(place, Reason.UNSAFE_NAME, "", header.series_uid)
            target.unlink()
        elif kind_of_archive(target) is not None:
            self.open(target, place, depth + 1)
            target.unlink()
        else:
            self.found.files.append((target, place))

    def _place(self, archive: Path, name: str) -> Path:
        """A name for the member that no other has; for pseudonyms and folders, never opened."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        place = archive.joinpath(*(part.replace("\0", "") for part in parts))
        self.places[place] += 1
        n = self.places[place]
        return place if n == 1 else place.with_name(f"{place.name}#{n}")

    def _refuse(self, place: Path, reason: Reason, message: str, series_uid: str = "") -> None:
        self.found.outcomes.append(FileOutcome(place, reason, message, series_uid))


def _fault(error: Exception, message: str) -> tuple[Reason, str]:
    if isinstance(error, BombError):
        return Reason.ARCHIVE_BOMB, ""
    if isinstance(error, Refusal):
        return reason_of(error), error.message
    if isinstance(error, NotImplementedError):
        return Reason.UNSUPPORTED_ARCHIVE, "an unknown compression"
    is_cut = isinstance(error, EOFError) or "unexpected end" in str(error)
    return (Reason.TRUNCATED if is_cut else Reason.UNREADABLE), message


def _safe_suffix(name: str) -> str:
    """The suffix of a member where it says what the file is."""
    lower = name.lower()
    known = (*NIFTI_SUFFIXES[::-1], ".tar.gz", ".tar", ".tgz", *sorted(DICOM_SUFFIXES))
    return next((suffix for suffix in known if lower.endswith(suffix)), "")
