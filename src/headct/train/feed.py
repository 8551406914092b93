"""Scans of the store -> views on the device, ready before the step that wants them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from headct.model.tokens import select_head_tokens
from headct.store.store import Store
from headct.train.recipe import PretrainRecipe
from headct.views.batch import ViewBatch, ViewMaker
from headct.views.loader import ScanBatch, ScanLoader


@dataclass(frozen=True, eq=False)
class PretrainBatch:
    """A micro-batch: which scans, and their views on the device."""

    scans: ScanBatch
    views: ViewBatch

    def __len__(self) -> int:
        return len(self.scans.rows)


class Feed:
    """Micro-batches of a rank with their views, a pure function of the step.

    The loader's threads read, decode and check. On a GPU one more thread copies to the device from
    pinned memory and cuts the views there on a stream of its own, one micro-batch ahead, so that
    the training thread only launches the step. On a CPU, where views would take the cores from
    the step, they are made when they are wanted.

    Args:
        loader: of this rank.
        maker: of the recipe's views.
        recipe: says which steps need local views.
        device: where views are made.
    """

    def __init__(
        self, loader: ScanLoader, maker: ViewMaker, recipe: PretrainRecipe, device: torch.device
    ) -> None:
        self.loader, self.maker, self.recipe, self.device = loader, maker, recipe, device
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # first in the queue: their many small kernels would wait for every product of the step
            self.stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    @contextmanager
    def batches(self, first_step: int) -> Iterator[Iterator[PretrainBatch]]:
        """Micro-batches from a step to the end of the run, while the block runs."""
        with self.loader.reading(first_step, self.recipe.steps) as scans:
            numbered = enumerate(scans, first_step * self.recipe.accumulate)
            if self.stream is None:
                yield (self._make(number, batch) for number, batch in numbered)
                return
            with closing(made_ahead(self._make, numbered, self.stream)) as made:
                yield made

    def first_views(self, n_scans: int) -> ViewBatch:
        """Global views of the first scans of the data order that can be read."""
        batch = self.loader.read(0)
        hu = torch.from_numpy(batch.hu[:n_scans]).to(self.device)
        return self.maker.make(hu, batch.places[:n_scans], step=0, with_locals=False)

    def _make(self, number: int, batch: ScanBatch) -> PretrainBatch:
        step = number // self.recipe.accumulate
        hu = torch.from_numpy(batch.hu)
        if self.stream is not None:
            hu = hu.pin_memory()
        hu = hu.to(self.device, non_blocking=True)
        with_locals = self.recipe.objective.cls.weight_at(step / self.recipe.steps) > 0
        views = self.maker.make(hu, batch.places, step, with_locals=with_locals)
        return PretrainBatch(batch, views)


Made = TypeVar("Made", PretrainBatch, ViewBatch)


def made_ahead(
    make: Callable[..., Made], wanted: Iterator[tuple[Any, ...]], stream: torch.cuda.Stream
) -> Generator[Made]:
    """`make` of each of the wanted arguments, on a stream and a thread of its own, one ahead.

    What comes out is ready for the stream of the caller, and stays until that is done with it.
    """
    thread = ThreadPoolExecutor(1, "make-views")

    def on_stream(*arguments: Any) -> tuple[Made, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            made = make(*arguments)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        return made, done

    def following() -> Future[tuple[Made, torch.cuda.Event]] | None:
        arguments = next(wanted, None)
        return None if arguments is None else thread.submit(on_stream, *arguments)

    try:
        pending = following()
        while pending is not None:
            made, done = pending.result()
            pending = following()
            current = torch.cuda.current_stream(stream.device)
            current.wait_event(done)
            views = made if isinstance(made, ViewBatch) else made.views
            for field in fields(views):
                value = getattr(views, field.name)
                if isinstance(value, Tensor):
                    value.record_stream(current)  # its memory is free when the step is done
            yield made
    finally:
        thread.shutdown(cancel_futures=True)


def view_maker(recipe: PretrainRecipe, store: Store) -> ViewMaker:
    """The views of a recipe on the grid of a store."""
    encoder = recipe.encoder
    patch = encoder.patch_voxels_zyx

    def select(hu: Tensor) -> Tensor:
        return select_head_tokens(hu, encoder.n_tokens, patch)

    return ViewMaker(recipe.views, store.preprocessing, patch, select, recipe.seed)
