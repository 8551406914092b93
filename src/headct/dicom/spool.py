"""A private folder for identifiable files that are needed only for a while."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def spooling(work: Path | None, name: str) -> Iterator[Path]:
    """An empty folder that nobody else may enter; removed at the end.

    What a killed run has left under the same name is removed first. The system lets go the lock of
    a dead process, so that a run that goes on is never mistaken for it.

    Args:
        work: made, for its owner alone, where it is absent; None takes the system's folder for
            temporary files.
        name: without identifiers, the same in every run on the same store.
    """
    work = Path(tempfile.gettempdir()) if work is None else work
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    prefix = f"headct-spool-{name}-"
    for leftover in work.glob(f"{prefix}*"):
        _remove_leftover(leftover)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=work))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _remove_leftover(folder: Path) -> None:
    """Remove a spool that is ours and whose process is gone."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError):
        return
