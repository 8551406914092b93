"""Writing a store: whole shards, then the item lines, then the rows that make them count."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import tensorstore as ts
from numpy.typing import NDArray

from headct.atomic import write_text
from headct.errors import StoreError
from headct.run import append_jsonl, read_jsonl
from headct.store.layout import (
    ARRAY,
    ITEMS,
    JOURNAL,
    LOCK,
    MANIFEST,
    MANIFEST_COPY,
    STORE_JSON,
    StoreInfo,
    create_array,
    open_array,
    read_info,
    write_info,
)
from headct.store.lock import WriterLock
from headct.store.manifest import plain_row, read_manifest, to_table, write_manifest
from headct.volume.preprocessing import Preprocessing

ACCEPTED = ("accepted", "flagged")
MAX_PENDING_ITEMS = 256


def hu_sha256(hu: NDArray[np.int16]) -> str:
    """SHA-256 over the voxels as little-endian int16 in [z y x] order."""
    return hashlib.sha256(np.ascontiguousarray(hu, dtype="<i2").data).hexdigest()


class StoreWriter:
    """Appends canonical volumes to a store; use it as a context manager.

    A scan counts once its row is in the journal, which is written last. Whatever stops the
    process, the store holds the scans and items of the last flush, and the next writer goes on
    from there. Only one writer at a time.

    Args:
        path: the store folder; made where it is absent.
        preprocessing: must be that of the store where there is one.
        shard_scans: scans per file of a new store.

    Raises:
        StoreError: another writer is at work, another format version, or a damaged store.
        MismatchError: the store was made with another preprocessing.
    """

    def __init__(
        self, path: str | Path, preprocessing: Preprocessing, shard_scans: int = 32
    ) -> None:
        self.path = Path(path)
        self.preprocessing = preprocessing
        self._info = StoreInfo(preprocessing=preprocessing, shard_scans=shard_scans)
        self._lock = WriterLock(self.path / LOCK)
        self._sha_of: dict[str, str] = {}
        self._n_committed = 0
        self._pending_hu: list[NDArray[np.int16]] = []
        self._pending_rows: list[dict[str, Any]] = []
        self._pending_items: list[dict[str, Any]] = []
        self._broken = False

    def __enter__(self) -> StoreWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._array = self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._broken:
                self.flush()
                self._fold_journal()
        finally:
            self._lock.release()

    def __len__(self) -> int:
        return self._n_committed + len(self._pending_rows)

    def __contains__(self, scan_id: str) -> bool:
        return scan_id in self._sha_of

    def append(self, hu: NDArray[np.int16], row: dict[str, Any]) -> bool:
        """Add one scan; it is on disk after the next flush, which full shards bring about.

        Args:
            hu: [z y x] int16 on the canonical grid.
            row: manifest columns; `row` and `hu_sha256` are filled in here.

        Returns:
            False where the store already has this very scan.

        Raises:
            StoreError: wrong shape or type, a bad row, or the same scan_id with other voxels.
        """
        is_new = self._take(hu, row)
        self._flush_when_full()
        return is_new

    def add(
        self,
        items: Iterable[dict[str, Any]],
        scans: Iterable[tuple[NDArray[np.int16], dict[str, Any]]] = (),
    ) -> None:
        """Add all lines of one input and its scans together: they are never half on disk.

        Args:
            items: lines of items.jsonl, all with the same `source`.
            scans: voxels and manifest row of the accepted ones, as in `append`.
        """
        for hu, row in scans:
            self._take(hu, row)
        self._pending_items.extend(items)
        self._flush_when_full()

    def record(self, item: dict[str, Any]) -> None:
        """Add one line of items.jsonl alone; it is on disk after the next flush."""
        self.add([item])

    def _take(self, hu: NDArray[np.int16], row: dict[str, Any]) -> bool:
        self._require_open()
        if hu.shape != self.preprocessing.shape_zyx or hu.dtype != np.int16:
            raise StoreError(
                f"the store takes int16 {self.preprocessing.shape_zyx}, not {hu.dtype} {hu.shape}",
                remedy="bring the volume to the canonical grid first",
            )
        sha = hu_sha256(hu)
        values = plain_row(row | {"row": len(self), "hu_sha256": sha})
        scan_id = values["scan_id"]
        if scan_id in self._sha_of:
            return self._known(scan_id, sha)
        to_table([values])
        self._sha_of[scan_id] = sha
        self._pending_hu.append(hu.copy())
        self._pending_rows.append(values)
        return True

    def _flush_when_full(self) -> None:
        room = self._info.shard_scans - self._n_committed % self._info.shard_scans
        if len(self._pending_rows) >= room or len(self._pending_items) >= MAX_PENDING_ITEMS:
            self.flush()

    def forget(self, sources: set[str]) -> None:
        """Take the item lines of some inputs out, since they are looked at again.

        Scans of these inputs stay; the lines that the inputs get now are added at the end.
        """
        self.flush()
        kept = [item for item in self.items() if item["source"] not in sources]
        write_text(self.path / ITEMS, "".join(json.dumps(item) + "\n" for item in kept))

    def items(self) -> Iterator[dict[str, Any]]:
        """Items already on disk, in the order they were recorded."""
        return read_jsonl(self.path / ITEMS)

    def flush(self) -> None:
        """Bring everything appended and recorded so far to the disk, and commit it.

        Raises:
            OSError: the disk is full or failing; the store keeps what was committed before.
        """
        self._require_open()
        self._broken = True
        if self._pending_hu:
            self._write_shards()
        append_jsonl(self.path / ITEMS, self._pending_items, durable=True)
        if self._pending_rows:
            append_jsonl(self.path / JOURNAL, self._pending_rows, durable=True)
        self._broken = False
        self._n_committed += len(self._pending_rows)
        self._pending_hu, self._pending_rows, self._pending_items = [], [], []

    def _write_shards(self) -> None:
        start = self._n_committed
        stop = start + len(self._pending_hu)
        try:
            self._array = self._array.resize(exclusive_max=self._shape(stop)).result()
            self._array[start:stop].write(np.stack(self._pending_hu)).result()
        except (ValueError, RuntimeError) as error:
            if "No space left" in str(error) or "quota" in str(error):
                raise OSError(errno.ENOSPC, "no space left on the store's disk") from error
            raise StoreError("a shard could not be written", remedy="check the disk") from error

    def _open(self) -> ts.TensorStore:
        if not (self.path / STORE_JSON).exists():
            return self._create()
        info = read_info(self.path)
        self.preprocessing.require_same(info.preprocessing, "this run", "the store")
        self._info = info
        table = recover(self.path)
        self._n_committed = table.num_rows
        shas = table["hu_sha256"].to_pylist()
        self._sha_of = dict(zip(table["scan_id"].to_pylist(), shas, strict=True))
        return open_array(self.path).resize(exclusive_max=self._shape(self._n_committed)).result()

    def _create(self) -> ts.TensorStore:
        if read_manifest(self.path / MANIFEST).num_rows:
            raise StoreError("the store has lost its store.json", remedy="restore it from a copy")
        if (self.path / ARRAY).exists():
            array = open_array(self.path)
            if tuple(array.shape[1:]) != self.preprocessing.shape_zyx:
                raise StoreError("a half-made store is in the way", remedy="remove that folder")
        else:
            array = create_array(self.path, self._info)
        write_manifest(self.path / MANIFEST, to_table([]))
        write_info(self.path, self._info)
        return array

    def _fold_journal(self) -> None:
        recover(self.path)
        self._array = self._array.resize(exclusive_max=self._shape(self._n_committed)).result()

    def _shape(self, n: int) -> list[int]:
        return [n, *self.preprocessing.shape_zyx]

    def _known(self, scan_id: str, sha: str) -> bool:
        if self._sha_of[scan_id] == sha:
            return False
        raise StoreError(
            f"scan {scan_id} is in the store with other voxels",
            remedy="the source changed: ingest it into a new store",
            code="conflict",
        )

    def _require_open(self) -> None:
        if self._broken:
            raise StoreError(
                "a write failed; this writer is closed", remedy="run the command again"
            )


def committed_rows(folder: Path) -> pa.Table:
    """The manifest with the journal's rows; reading only. A lost manifest is a StoreError."""
    if not (folder / MANIFEST).exists():
        raise StoreError(
            f"{MANIFEST} is missing", remedy="run `headct store rebuild`", code="damaged-manifest"
        )
    table = read_manifest(folder / MANIFEST)
    fresh = [r for r in read_jsonl(folder / JOURNAL) if r["row"] >= table.num_rows]
    return pa.concat_tables([table, to_table(fresh)]) if fresh else table


def recover(folder: Path) -> pa.Table:
    """Fold the journal into the manifest and cut items that were never committed.

    Call it with the writer's lock held. Safe to be killed at any line and called again.
    """
    table = committed_rows(folder)
    _cut_items(folder / ITEMS, set(table["scan_id"].to_pylist()))
    if (folder / JOURNAL).exists():
        write_manifest(folder / MANIFEST, table)
        write_manifest(folder / MANIFEST_COPY, table)
        (folder / JOURNAL).unlink()
    return table


def _cut_items(path: Path, scan_ids: set[str]) -> None:
    """Cut the file before the first input with an uncommitted scan, or before a torn last line."""
    if not path.exists():
        return
    end = start = 0
    source = None
    with path.open("rb+") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            item = json.loads(line)
            if item["source"] != source:
                source, start = item["source"], end
            if item["status"] in ACCEPTED and item["scan_id"] not in scan_ids:
                end = start
                break
            end += len(line)
        handle.truncate(end)
