import threading
from itertools import chain, count, takewhile

import numpy as np
import pytest

from headct.errors import StoreError, TrainingError
from headct.views.loader import DataOrder, ScanLoader


class Scans:
    """A store in memory whose voxels name their row; some rows cannot be read."""

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        self.scan_ids = [f"c-{row}" for row in range(n)]
        self.broken = set(broken)
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return len(self.scan_ids)

    def read_hu(self, rows):
        self.threads.add(threading.current_thread().name)
        if self.broken & set(rows):
            raise StoreError("damaged")
        return np.stack([np.full((2, 2, 2), row, np.int16) for row in rows])


def rows_of(loader: ScanLoader, steps: int) -> list[int]:
    return [row for step in range(steps) for row in loader.read(step).rows]


def test_every_epoch_is_another_permutation():
    loader = ScanLoader(Scans(10), batch=5, seed=1)
    rows = rows_of(loader, 6)
    epochs = [rows[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_go_on_across_epochs():
    loader = ScanLoader(Scans(7), batch=4, seed=1)
    assert loader.read(1).places == ((0, 4), (0, 5), (0, 6), (1, 0))


def test_ranks_and_micro_batches_share_one_order():
    alone = ScanLoader(Scans(50), batch=8, seed=3)
    for step in range(4):
        shared = []
        for micro in range(2):
            for rank in range(2):
                loader = ScanLoader(Scans(50), 2, 3, rank=rank, world_size=2, accumulate=2)
                shared += loader.read(step, micro).rows
        assert tuple(shared) == alone.read(step).rows


def test_voxels_belong_to_their_rows():
    batch = ScanLoader(Scans(9), batch=4, seed=0).read(1)
    assert batch.hu[:, 0, 0, 0].tolist() == list(batch.rows)


def test_an_unreadable_scan_is_replaced_by_a_real_one():
    whole, broken = Scans(20), Scans(20, broken=(3, 4))
    expected, got = ScanLoader(whole, 5, seed=2), ScanLoader(broken, 5, seed=2)
    before, after = rows_of(expected, 8), rows_of(got, 8)
    assert not {3, 4} & set(after)
    assert all(a == b for a, b in zip(before, after, strict=True) if a not in (3, 4))
    assert rows_of(ScanLoader(Scans(20, broken=(3, 4)), 5, seed=2), 8) == after


def test_a_batch_says_what_it_does_without_and_what_came_instead():
    loader = ScanLoader(Scans(20, broken=(3, 4)), 5, seed=2)
    lost = []
    for step in range(8):
        due = [loader.order.row(*place) for place in loader.read(step).places]
        batch = loader.read(step)
        lost += batch.unreadable
        assert {one.row for one in batch.unreadable} >= set(due) & {3, 4}
        for one in batch.unreadable:
            assert one.replaced_by in batch.rows
    assert {(one.row, one.reason) for one in lost} == {(3, "store"), (4, "store")}


def test_stand_ins_that_cannot_be_read_either_are_said_too():
    broken = (0, 1, 2, 3)
    loader = ScanLoader(Scans(6, broken), 3, seed=2, max_unreadable_fraction=1.0)
    longest = 0
    for step in range(8):
        batch, expected = loader.read(step), []
        for place, row in zip(batch.places, batch.rows, strict=True):
            stand_ins = (loader.order.replacement(*place, attempt) for attempt in count())
            tried = chain([loader.order.row(*place)], stand_ins)
            lost = dict.fromkeys(takewhile(lambda one: one in broken, tried))
            expected += [(one, row) for one in lost]
            longest = max(longest, len(lost))
        assert [(one.row, one.replaced_by) for one in batch.unreadable] == expected
    assert longest > 1


@pytest.mark.parametrize(
    ("n", "fraction", "tried"), [(20, 0.01, 4), (20, 1.0, 20), (3, 0.01, 3), (1, 0.01, 1)]
)
def test_where_nothing_can_be_read_a_loader_gives_up(n, fraction, tried):
    source = Scans(n, broken=tuple(range(n)))
    loader = ScanLoader(source, 1, seed=2, max_unreadable_fraction=fraction)
    with pytest.raises(TrainingError, match=f"at least {tried} of {n} scans could not be read"):
        loader.read(0)


def test_an_empty_store_is_an_error():
    with pytest.raises(StoreError, match="no scans"):
        ScanLoader(Scans(0), 5, seed=2)


def test_reading_ahead_gives_the_same_batches_from_a_thread():
    source = Scans(30)
    loader = ScanLoader(source, 4, seed=2, accumulate=2)
    with loader.reading(3, 6) as batches:
        got = [batch.rows for batch in batches]
    assert source.threads == {"read-scans_0"}
    assert got == [loader.read(step, micro).rows for step in (3, 4, 5) for micro in (0, 1)]


def test_an_error_in_the_thread_reaches_the_training():
    loader = ScanLoader(Scans(8, broken=tuple(range(8))), 4, seed=2)
    with pytest.raises(TrainingError), loader.reading(0, 3) as batches:
        next(batches)


def test_the_order_depends_on_the_seed_alone():
    def start(seed: int) -> list[int]:
        return [DataOrder(100, seed).row(3, position) for position in range(9)]

    assert start(7) == start(7)
    assert start(7) != start(8)
