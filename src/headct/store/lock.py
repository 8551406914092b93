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
            StoreError: another process holds it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreError(
                f"another process is writing this store ({holder or 'unknown'})",
                remedy="wait until it is done, or stop it",
                code="store-locked",
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
