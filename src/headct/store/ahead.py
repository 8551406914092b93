"""Scans of a store in order, read ahead in threads while the last ones are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from headct.store.store import Store

SCANS_AT_ONCE = 16
READERS = 4
"""Threads, each with a batch of its own; decoding and hashing leave the GIL alone."""

Batch = tuple[Sequence[int], NDArray[np.int16]]
"""Rows of a store, and their HU [b z y x]."""


def read_batches(
    store: Store, rows: Sequence[int] | None = None, scans_at_once: int = SCANS_AT_ONCE
) -> Iterator[Batch]:
    """HU of rows of a store, a batch at a time.

    Args:
        store: that holds them.
        rows: in the order wanted; all if None.
        scans_at_once: rows of a batch; the last may have fewer.

    Raises:
        StoreError: a row that is not there, or a damaged scan, which is named.
    """
    wanted = range(len(store)) if rows is None else rows
    pending: deque[tuple[Sequence[int], Future[NDArray[np.int16]]]] = deque()
    threads = ThreadPoolExecutor(READERS, "read-scans")
    try:
        for start in range(0, len(wanted), scans_at_once):
            some = wanted[start : start + scans_at_once]
            pending.append((some, threads.submit(store.read_hu, some)))
            if len(pending) > READERS:
                yield _next(pending)
        while pending:
            yield _next(pending)
    finally:
        threads.shutdown(cancel_futures=True)


def _next(pending: deque[tuple[Sequence[int], Future[NDArray[np.int16]]]]) -> Batch:
    rows, hu = pending.popleft()
    return rows, hu.result()
