"""The index of a store, made again from its copy and the journal where it is lost or damaged."""

from __future__ import annotations

from pathlib import Path

from headct.atomic import replacing
from headct.errors import StoreError
from headct.store.layout import LOCK, MANIFEST, MANIFEST_COPY, read_info
from headct.store.lock import WriterLock
from headct.store.manifest import read_manifest
from headct.store.writer import recover


def rebuild_index(folder: Path) -> int:
    """Put the manifest back, and cut item lines of scans that were never committed.

    A manifest that can be read stays as it is. Voxels are not looked at: `headct store verify`.

    Returns:
        The number of scans.

    Raises:
        StoreError: no store, a writer is at work, or the copy is gone too.
    """
    read_info(folder)
    lock = WriterLock(folder / LOCK)
    lock.acquire()
    try:
        if not _is_readable(folder / MANIFEST):
            if not _is_readable(folder / MANIFEST_COPY):
                raise StoreError(
                    "the manifest and its copy are both lost",
                    remedy="move the store away and ingest the sources again",
                )
            with replacing(folder / MANIFEST) as aside:
                aside.write_bytes((folder / MANIFEST_COPY).read_bytes())
        return int(recover(folder).num_rows)
    finally:
        lock.release()


def _is_readable(path: Path) -> bool:
    try:
        return path.exists() and read_manifest(path) is not None
    except StoreError:
        return False
