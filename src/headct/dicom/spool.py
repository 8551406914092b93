"""A private folder for identifiable files that are needed only for a while."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headct.errors import UsageError


@contextmanager
def spooling(work: Path, name: str) -> Iterator[Path]:
    """An empty folder `work/headct-spool-NAME` that nobody else may enter; removed at the end.

    What a killed run left under the same name is removed first: let only one process at a time
    use a name.

    Args:
        work: made, for its owner alone, where it is absent.
        name: without identifiers, the same in every run on the same store.

    Raises:
        UsageError: somebody else has made a folder or link of that name.
    """
    folder = work / f"headct-spool-{name}"
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_leftover(folder)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _remove_leftover(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(
            "the work folder holds something of somebody else under our name",
            remedy="give --work a folder of your own",
        )
    shutil.rmtree(folder)
