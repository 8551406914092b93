"""Keyed pseudonyms: the only names of patients, studies and series past the DICOM reader."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import sys
from pathlib import Path

from headct.errors import UsageError

KEY_BYTES = 32
KEY_VARIABLE = "HEADCT_KEY_FILE"


class Pseudonymizer:
    """Identifiers -> short names that only the holder of the key can link.

    The same key gives the same names in every worker and every run; each kind of name has its own
    domain, so that equal texts of two kinds do not show as equal names.

    Args:
        key: at least 16 secret bytes, from `load_key`.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise UsageError("the key is shorter than 16 bytes", remedy="use `load_key`")
        self._key = key

    def patient_id(self, patient: str) -> str:
        """`p-<16 hex>` for a PatientID with its issuer."""
        return self._name("p", patient)

    def study_id(self, uid: str) -> str:
        """`s-<16 hex>` for a StudyInstanceUID."""
        return self._name("s", uid)

    def series_id(self, uid: str) -> str:
        """`e-<16 hex>` for a SeriesInstanceUID."""
        return self._name("e", uid)

    def scan_id(self, uid: str, extra: str = "") -> str:
        """`c-<16 hex>` for one volume; `extra` tells volumes under one series UID apart."""
        return self._name("c", f"{uid}\0{extra}" if extra else uid)

    def source_id(self, path: str | Path) -> str:
        """`f-<16 hex>` for a file or folder: its path may name a person."""
        return self._name("f", os.fspath(path))

    def _name(self, kind: str, text: str) -> str:
        # surrogateescape: a hostile file name need not be UTF-8
        data = f"{kind}\0{text.strip()}".encode("utf-8", "surrogateescape")
        return f"{kind}-{hmac.new(self._key, data, hashlib.sha256).hexdigest()[:16]}"


def load_key(path: Path | None = None) -> bytes:
    """The secret key of this site; made on first use, readable by its owner only.

    Args:
        path: the key file; None takes $HEADCT_KEY_FILE, else ~/.config/headct/key.

    Raises:
        UsageError: others may read the file, or it is not a key.
    """
    path = key_path(path)
    try:
        text = _read_private(path)
    except FileNotFoundError:
        return _create(path)
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as error:
        raise UsageError("the key file is not hex text", remedy="give the right file") from error
    if len(key) < 16:
        raise UsageError("the key file holds fewer than 16 bytes", remedy="give the right file")
    return key


def key_path(path: Path | None = None) -> Path:
    """Where the key is, or will be made: `path`, else $HEADCT_KEY_FILE, else the home folder."""
    return path or Path(os.environ.get(KEY_VARIABLE) or Path.home() / ".config" / "headct" / "key")


def _read_private(path: Path) -> str:
    with path.open(encoding="ascii", errors="replace") as handle:
        mode = os.fstat(handle.fileno()).st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(
                "the key file can be read by others than its owner",
                remedy="chmod 600 it; whoever has read it can link pseudonyms to patients",
            )
        return handle.read(4096)


def _create(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(key.hex() + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        # a link, not a rename: of two first runs at once one key wins, and both use it
        os.link(aside, path)
    except FileExistsError:
        return load_key(path)
    finally:
        aside.unlink(missing_ok=True)
    print(f"headct: made a new key for pseudonyms in {path}; keep it safe", file=sys.stderr)
    return key
