"""What the rest needs of a PACS, whichever protocol it speaks; and patience with it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from headct.errors import HeadctError
from headct.pacs.address import Pacs

T = TypeVar("T")
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class TransferError(Exception):
    """A request failed and may be tried again.

    Args:
        message: what happened, without identifiers.
        gone: the PACS did not answer at all.
    """

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


@dataclass(frozen=True)
class SeriesRecord:
    """What the PACS says of a series before any of it is transferred.

    Attributes:
        n_images: None where the PACS does not say.
    """

    uid: str = field(repr=False)
    modality: str = ""
    body_part: str = ""
    n_images: int | None = None


class Connection(Protocol):
    """A way to ask a PACS and to fetch from it."""

    def check(self) -> None:
        """Ask whether the PACS is there; HeadctError with a remedy where it is not."""

    def find_studies(self, keys: dict[str, str]) -> list[str]:
        """StudyInstanceUIDs that match DICOM keywords and values."""

    def find_series(self, study_uid: str) -> list[SeriesRecord]:
        """The series of a study, by UID; empty where the PACS has no such study."""

    def fetch(self, study_uid: str, series: SeriesRecord, folder: Path) -> None:
        """Bring a whole series, as the PACS has stored it, into an empty folder."""

    def close(self) -> None:
        """Let go."""


def connect(pacs: Pacs, incoming: Path | None = None) -> Connection:
    """A connection by the protocol that the address names; nothing is asked yet.

    Args:
        pacs: the address.
        incoming: where the receiver puts what C-MOVE brings.

    Raises:
        HeadctError: the packages for it are not installed.
    """
    try:
        if pacs.protocol == "dicomweb":
            from headct.pacs.dicomweb import DicomWeb

            return DicomWeb(pacs)
        from headct.pacs.dimse import Dimse

        return Dimse(pacs, incoming)
    except ImportError as error:
        raise HeadctError(
            "talking to a PACS needs packages that are not installed",
            code="missing-extra",
            remedy='pip install "headct[pacs]"',
        ) from error


def patiently(attempts: int, action: Callable[[], T], pause_s: float = FIRST_PAUSE_S) -> T:
    """The result of an action, tried again after growing pauses while it fails.

    Raises:
        TransferError: the last try failed too.
    """
    for n in range(attempts - 1):
        try:
            return action()
        except TransferError:
            # a random part, so that several processes do not come back at the same moment
            time.sleep(min(pause_s * 2**n, LONGEST_PAUSE_S) * random.uniform(0.75, 1.25))  # noqa: S311
    return action()


class Throttle:
    """Lets at most so many through a second, over all threads that use it."""

    def __init__(self, per_s: float | None) -> None:
        self.gap_s = 1 / per_s if per_s else 0.0
        self.next = 0.0
        self.lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until it is one's turn."""
        if not self.gap_s:
            return
        with self.lock:
            now = time.monotonic()
            self.next = max(self.next, now) + self.gap_s
            pause = self.next - self.gap_s - now
        if pause > 0:
            time.sleep(pause)
