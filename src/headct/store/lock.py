"""One writer at a time: an advisory lock that the system lets go when its process dies."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from headct.errors import StoreError


class WriterLock:
    """An exclusive lock on a file; a dead holder's lock is free at once, so none ever goes stale.

    Args:
        path: the lock file; it stays there, unlocked, when nobody writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StoreError: another process holds it, or the file system knows no locks.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"another process is writing this store ({holder or 'unknown'})",
                remedy="wait until it is done, or stop it; one command with more workers "
                "(--jobs, --engine) does it sooner than two",
                code="store-locked",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                "the file system of the store has no locks",
                remedy="mount it with locks (Lustre: -o flock), or put the store on another disk",
                code="store-lock",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the lock go."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def require_free(path: Path) -> None:
    """Look whether a lock could be taken, before hours of work for it.

    Raises:
        StoreError: another process holds it.
    """
    if path.exists():
        lock = WriterLock(path)
        lock.acquire()
        lock.release()
