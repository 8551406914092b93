"""Where a PACS is, and how gently it is to be asked; nothing secret is kept here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from headct.errors import UsageError

SCHEMES = ("dicomweb", "dicomwebs", "dicom")
AE_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e]{1,16}")
FORMS = "dicomweb://HOST:PORT/PATH, dicomwebs://HOST/PATH (https) or dicom://AET@HOST:PORT"


@dataclass(frozen=True)
class Listen:
    """Our own receiver for C-MOVE: the title that the PACS knows us by, and where it listens."""

    aet: str
    host: str
    port: int


@dataclass(frozen=True)
class Pacs:
    """One PACS and the manners towards it.

    Attributes:
        protocol: DICOMweb, or the classic network protocol.
        url: of DICOMweb; without user and password.
        host, port, called: of the classic protocol; `called` is the title of the PACS.
        calling: our own title.
        listen: with it, studies come by C-MOVE to this receiver; without, by C-GET.
        token_file: file with a bearer token for DICOMweb.
        timeout_s: of silence, until a try counts as failed.
        attempts: tries per request, with growing pauses between.
        images_per_s: at most so many from each connection; None for no limit.
    """

    protocol: Literal["dicomweb", "dimse"]
    url: str = ""
    host: str = ""
    port: int = 0
    called: str = ""
    calling: str = "HEADCT"
    listen: Listen | None = None
    token_file: Path | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    attempts: int = 4
    images_per_s: float | None = None


def is_address(text: str) -> bool:
    """Whether a source names a PACS, not a file."""
    return "://" in text


def parse_address(text: str) -> Pacs:
    """The PACS that an address names.

    Raises:
        UsageError: not an address, or one with a password in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad_address("its host or port cannot be read") from error
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise _bad_address("it is none")
    if parts.scheme == "dicom":
        return _classic(parts, port)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "a user, password or token has no place in the address of a PACS",
            remedy="use --token-file, HEADCT_PACS_USER and HEADCT_PACS_PASSWORD, or ~/.netrc",
        )
    http = "https" if parts.scheme == "dicomwebs" else "http"
    return Pacs("dicomweb", url=f"{http}://{parts.netloc}{parts.path.rstrip('/')}")


def _classic(parts: SplitResult, port: int | None) -> Pacs:
    if not parts.username or parts.password is not None or port is None:
        raise _bad_address("it needs the title of the PACS, its host and its port")
    called = require_ae_title(parts.username)
    return Pacs("dimse", host=parts.hostname or "", port=port, called=called)


def parse_listen(text: str) -> Listen:
    """Our receiver from `AET@HOST:PORT` (HOST may be 0.0.0.0 for all network cards).

    Raises:
        UsageError: another form.
    """
    title, _, place = text.rpartition("@")
    host, _, port = place.rpartition(":")
    if not title or not host or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UsageError("--listen is not AET@HOST:PORT", remedy="e.g. HEADCT@0.0.0.0:11112")
    return Listen(require_ae_title(title), host.strip("[]"), int(port))


def require_ae_title(title: str) -> str:
    """The title, if it can be one.

    Raises:
        UsageError: too long, or with characters that none has.
    """
    if AE_TITLE.fullmatch(title) is None:
        raise UsageError("not an AE title", remedy="1 to 16 characters without spaces")
    return title


def _bad_address(why: str) -> UsageError:
    return UsageError(f"not the address of a PACS: {why}", remedy=FORMS)
