"""From a store to batches: a data order that is a pure function, and reading ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headct.errors import StoreError, TrainingError
from headct.views.draws import generator

READ_AHEAD = 2
"""Batches that are read or waiting for each reader, while one is being trained on."""
ALWAYS_TOLERATED = 3
"""Unreadable scans that never stop a run, however small the store."""
MOST_NAMED = 8
"""Scans that a message lists."""


class ScanSource(Protocol):
    """What a loader reads from; `Store` is one."""

    scan_ids: list[str]

    def __len__(self) -> int: ...

    def read_hu(self, rows: Sequence[int]) -> NDArray[np.int16]:
        """[n z y x]; raises StoreError where a scan cannot be read."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """A scan that could not be read.

    Attributes:
        row: of the store.
        reason: code of the store's error.
        replaced_by: row of the scan that came in its place.
    """

    row: int
    reason: str
    replaced_by: int


@dataclass(frozen=True, eq=False)
class ScanBatch:
    """Scans of one step on one rank.

    Attributes:
        hu: [b z y x] int16.
        rows: row of each scan in the store.
        places: (epoch, position) of each scan in the data order.
        unreadable: scans that were due but are not among the rows.
    """

    hu: NDArray[np.int16]
    rows: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    unreadable: tuple[Unreadable, ...] = ()


def too_many_unreadable(scan_ids: Collection[str], n_scans: int, most: float) -> TrainingError:
    """What ends a run that would have to do without more scans than it may.

    Args:
        scan_ids: pseudonymous names of the scans that could not be read.
        n_scans: of the store.
        most: scans that are replaced before a run ends.
    """
    names = sorted(scan_ids)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return TrainingError(
        f"at least {len(names)} of {n_scans} scans could not be read in this run, more than the"
        f" {int(most)} that are replaced: {', '.join(names[:MOST_NAMED])}{more}",
        remedy="run `headct store verify`, then mend the store",
        code="unreadable-scans",
    )


class DataOrder:
    """Which scan is where: every epoch is a new permutation of all rows.

    Args:
        n_scans: rows of the store.
        seed: of the run.
    """

    def __init__(self, n_scans: int, seed: int) -> None:
        self.n_scans, self.seed = n_scans, seed
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def place(self, index: int) -> tuple[int, int]:
        """(epoch, position) of the index-th scan seen since the start of the run."""
        return divmod(index, self.n_scans)

    def row(self, epoch: int, position: int) -> int:
        """Row of the store at a place."""
        return int(self._permutation(epoch)[position])

    def replacement(self, epoch: int, position: int, attempt: int) -> int:
        """Row that stands in for an unreadable one; another for every attempt."""
        rng = generator(self.seed, "replacement", epoch, position, attempt)
        return int(rng.integers(self.n_scans))

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        return generator(self.seed, "order", epoch).permutation(self.n_scans)


class ScanLoader:
    """Reads the batches of one rank; the batch of a step depends on nothing but the step.

    Args:
        source: the store.
        batch: scans per micro-batch on this rank.
        seed: of the run.
        rank: of this process.
        world_size: processes; each takes its share of the global batch.
        accumulate: micro-batches per step.
        max_unreadable_fraction: share of the store's scans above which the run stops; the loader
            gives up where one place alone comes upon so many, and whoever takes its batches counts.
        readers: threads, each with a batch of its own; decoding and hashing leave the GIL alone.

    Raises:
        StoreError: the store is empty.
    """

    def __init__(
        self,
        source: ScanSource,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        max_unreadable_fraction: float = 0.01,
        readers: int = 1,
    ) -> None:
        if len(source) == 0:
            raise StoreError("the store holds no scans", remedy="ingest some first", code="empty")
        self.source, self.batch, self.rank, self.world_size = source, batch, rank, world_size
        self.accumulate, self.readers = accumulate, readers
        self.order = DataOrder(len(source), seed)
        self.max_unreadable = max(ALWAYS_TOLERATED, max_unreadable_fraction * len(source))

    def read(self, step: int, micro: int = 0) -> ScanBatch:
        """The micro-batch of a step.

        An unreadable scan is replaced by another real one.

        Raises:
            TrainingError: for one place more scans were tried than the whole run may lack, or all.
        """
        first = ((step * self.accumulate + micro) * self.world_size + self.rank) * self.batch
        places = tuple(self.order.place(first + i) for i in range(self.batch))
        rows = [self.order.row(*place) for place in places]
        try:
            return ScanBatch(self.source.read_hu(rows), tuple(rows), places)
        except StoreError:
            read = [self._read_or_replace(*place) for place in places]
        return ScanBatch(
            np.stack([hu for hu, _, _ in read]),
            tuple(row for _, row, _ in read),
            places,
            tuple(Unreadable(*lost, row) for _, row, failed in read for lost in failed.items()),
        )

    def _read_or_replace(
        self, epoch: int, position: int
    ) -> tuple[NDArray[np.int16], int, dict[int, str]]:
        """The voxels of a place, the row that they are of, and why rows before it failed."""
        row, attempt = self.order.row(epoch, position), 0
        failed: dict[int, str] = {}
        while True:
            try:
                return self.source.read_hu([row])[0], row, failed
            except StoreError as error:
                failed[row] = error.code
                if len(failed) > min(self.max_unreadable, len(self.source) - 1):
                    names = [self.source.scan_ids[row] for row in failed]
                    raise too_many_unreadable(
                        names, len(self.source), self.max_unreadable
                    ) from error
            row, attempt = self.order.replacement(epoch, position, attempt), attempt + 1

    @contextmanager
    def reading(self, first_step: int, last_step: int) -> Iterator[Iterator[ScanBatch]]:
        """Micro-batches of the steps first..last - 1 in order, read ahead while they are used."""
        wanted = (
            (step, micro)
            for step in range(first_step, last_step)
            for micro in range(self.accumulate)
        )
        threads = ThreadPoolExecutor(self.readers, "read-scans")
        try:
            yield self._ahead(threads, wanted)
        finally:
            threads.shutdown(cancel_futures=True)

    def _ahead(
        self, threads: ThreadPoolExecutor, wanted: Iterator[tuple[int, int]]
    ) -> Iterator[ScanBatch]:
        pending: deque[Future[ScanBatch]] = deque()
        for step, micro in wanted:
            pending.append(threads.submit(self.read, step, micro))
            if len(pending) > READ_AHEAD * self.readers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
