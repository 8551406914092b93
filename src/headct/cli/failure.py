"""What every verb does when something goes wrong, at a terminal and as a job.

Exit codes: 0 done; 1 failed, or done with refusals; 2 wrong use; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from headct.errors import DISK_FULL, HeadctError, place_of

INTERRUPTED = 130
PLACES = {
    errno.EACCES: "may not be read or written by you",
    errno.EPERM: "may not be changed by you",
    errno.EROFS: "is on a disk that is read-only",
    errno.ENOTDIR: "lies under something that is no folder",
    errno.EISDIR: "is a folder where a file is needed",
    errno.EEXIST: "is there already, and is no folder",
    errno.ENAMETOOLONG: "has a name that is too long",
}
"""What the system says of a path; the path itself is not shown, since it can name a patient."""


@contextmanager
def errors_told() -> Iterator[None]:
    """Where the block fails, leave the process with words, a remedy and an exit code."""
    try:
        yield
        return
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == INTERRUPTED:
            _say("interrupted", "stopped before the end", "give the same command again", code)
    except HeadctError as error:
        code = _say(error.code, str(error), error.remedy, error.exit_code)
    except OSError as error:
        code = _system_error(error)
    except Exception as error:
        code = _unexpected(error)
    sys.stdout.flush()
    sys.exit(code)


def _system_error(error: OSError) -> int:
    if error.errno in DISK_FULL:
        return _say(
            "disk-full", "the disk is full", "free some space, then give the same command again", 1
        )
    if error.errno in PLACES:
        what = PLACES[error.errno]
        return _say("file-access", f"a file or folder {what}", "check the paths you gave", 1)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Show where it happened but not the message: a library's error can quote a header."""
    if os.environ.get("HEADCT_DEBUG"):
        traceback.print_exc()
    return _say(
        "unexpected",
        f"{place_of(error)}; its text is withheld, since it may quote patient data",
        "set HEADCT_DEBUG=1 to see all of it, and report the place and type as a bug",
        1,
    )


def _say(code: str, message: str, remedy: str, exit_code: int) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error", style="bold red", end="")
    console.print(f" [{code}]: {message}", markup=False)
    if remedy:
        console.print(f"what to do: {remedy}", markup=False)
    return exit_code
