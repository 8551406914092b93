"""What a worker calls: it reads the key from its file, so that no message to it holds the key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.errors import HeadctError
from headct.ingest.series import Outcome, Settings, Task, process

PROOF = "the same key"


class Keyed:
    """`process` with settings that travel without the key.

    Args:
        settings: with the key.
        key_file: where each worker finds it.
    """

    def __init__(self, settings: Settings, key_file: Path) -> None:
        self._settings = replace(settings, key=b"")
        self._file = _File(key_file.absolute(), Pseudonymizer(settings.key).source_id(PROOF))

    def __call__(self, task: Task) -> Outcome:
        """Read, check and resample one input.

        Raises:
            HeadctError: the worker does not have the key.
        """
        return process(replace(self._settings, key=_load(self._file)), task)


@dataclass(frozen=True)
class _File:
    path: Path
    proof: str


@cache
def _load(file: _File) -> bytes:
    # load_key would make a new key where there is none, and other pseudonyms with it
    key = load_key(file.path) if file.path.is_file() else b""
    if not key or Pseudonymizer(key).source_id(PROOF) != file.proof:
        raise HeadctError(
            "a worker does not find the key of the pseudonyms, or finds another one",
            code="worker-key",
            remedy="give --key a file that all machines see under the same path",
        )
    return key
