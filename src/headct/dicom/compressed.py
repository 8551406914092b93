"""What kind of archive a file is, and its plain bytes: counted, so that a bomb is noticed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from headct.dicom.reasons import Reason
from headct.errors import Refusal

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".gz", ".bz2", ".xz", ".zst")
OTHER_ZIPS = frozenset(
    {".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".apk", ".epub", ".npz", ".whl"}
)
"""Zip files by their bytes, documents or programs to people."""
MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
STREAMS = frozenset({"gzip", "xz", "bzip2", "zstd", "tar"})
MAX_TAR_HEADER_BYTES = 1 << 20
MAX_MEMBERS = 1_000_000


def kind_of_archive(path: Path) -> str | None:
    """`zip`, `tar`, `gzip`, ..., by the first bytes; None for anything else."""
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES) or path.suffix.lower() in OTHER_ZIPS:
        return None
    try:
        with path.open("rb") as handle:
            head = handle.read(512)
    except OSError:
        return None
    if head[128:132] == b"DICM":
        return None
    if head[257:262] == b"ustar" or (name.endswith(".tar") and any(head[:100])):
        return "tar"
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def is_named_archive(path: Path) -> bool:
    """Whether people would take the file for an archive."""
    name = path.name.lower()
    return name.endswith(ARCHIVE_SUFFIXES) and not name.endswith(NIFTI_SUFFIXES)


class BombError(Exception):
    """More comes out than may."""


class Budget:
    """Bytes and members that may still come out of an archive."""

    def __init__(self, n_bytes: int) -> None:
        self.bytes, self.members = n_bytes, MAX_MEMBERS

    def take(self, n_bytes: int) -> None:
        """Count bytes.

        Raises:
            BombError: there are more than may be.
        """
        self.bytes -= n_bytes
        if self.bytes < 0:
            raise BombError

    def take_member(self) -> None:
        """Count a member; raises as `take` does."""
        self.members -= 1
        if self.members < 0:
            raise BombError


class Metered(io.RawIOBase):
    """A decompressed stream whose bytes are counted: also those that nobody keeps."""

    def __init__(self, source: Any, budget: Budget) -> None:
        self.source, self.seen = source, Budget(budget.bytes)

    def readable(self) -> bool:
        """Yes: it is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end."""
        data = self.source.read(len(buffer))
        self.seen.take(len(data))
        buffer[: len(data)] = data
        return len(data)


def decompressed(handle: BinaryIO, kind: str) -> Any:
    """The plain bytes behind an open file, as an object with `read`."""
    if kind == "gzip":
        return _Damaged(gzip.GzipFile(fileobj=handle))
    if kind == "xz":
        return _Damaged(lzma.LZMAFile(handle, format=lzma.FORMAT_XZ))
    if kind == "bzip2":
        return _Damaged(bz2.BZ2File(handle))
    if kind == "zstd":
        import pyarrow as pa

        return _Damaged(pa.CompressedInputStream(handle, "zstd"))
    return handle


class _Damaged:
    """Damage of the data as a ValueError: these decompressors call it OSError."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def read(self, n_bytes: int) -> bytes:
        try:
            return cast(bytes, self.source.read(n_bytes))
        except OSError as error:
            raise ValueError("damaged data") from error


class StrictTarInfo(tarfile.TarInfo):
    """A tar file must end as one: tarfile itself takes a cut-off file for a shorter one."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        """The next header.

        Raises:
            Refusal: the file ends, or its headers are damaged.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":  # two empty blocks: the proper end
                raise
            is_cut = kind in ("EmptyHeaderError", "TruncatedHeaderError")
            raise Refusal(
                "the tar file ends early" if is_cut else "a damaged tar file",
                code=Reason.TRUNCATED if is_cut else Reason.UNREADABLE,
            ) from None

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        plain = self.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        if not plain and self.size > MAX_TAR_HEADER_BYTES:
            raise BombError  # such a header would be read into memory whole
        return super()._proc_member(tar)  # type: ignore[misc]
