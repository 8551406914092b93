"""What the encoder tells about labelled scans while it is pretrained; it learns nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from headct.model.embed import Bundle, Embedding, pooled
from headct.model.encoder import ViT3D
from headct.objective.joint import JointObjective
from headct.store.ahead import read_batches
from headct.store.store import Store
from headct.train.loop import StepRecord, TrainState


class Score(Protocol):
    """What labelled scans are asked."""

    def __call__(self, embedding: Embedding) -> Mapping[str, float]:
        """Numbers by name, from the vectors of the scans in their order."""
        ...


@dataclass(frozen=True, eq=False)
class LabelledSubset:
    """Scans whose labels are known.

    Attributes:
        store: where they are; it need not be the one that is trained on.
        rows: theirs.
        score: judges their vectors; only it knows the labels.
    """

    store: Store
    rows: tuple[int, ...]
    score: Score


class OnlineProbe:
    """Hook: vectors of the labelled scans every so many steps, and what they tell.

    The weights of a run are bitwise the same with and without it: the encoder is read without
    gradient and in evaluation mode, and no random number of the run is touched.

    Args:
        subset: labelled scans.
        objective: gives what is trained, on the rank that probes; every rank asks for it.
        every: steps between probes; 0 makes none.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        subset: LabelledSubset,
        objective: Callable[[], JointObjective | None],
        every: int,
        dtype: torch.dtype,
    ) -> None:
        self.subset, self.objective, self.every, self.dtype = subset, objective, every, dtype
        self._found: tuple[int, Mapping[str, float]] = (-1, {})

    def __call__(self, _: TrainState, record: StepRecord) -> None:
        """Probe where it is time."""
        if self.every == 0 or record.step % self.every:
            return
        objective = self.objective()
        if objective is not None:
            self._found = record.step, self.subset.score(self._embed(objective.bundle_encoder()))

    def found(self, step: int) -> Mapping[str, float]:
        """What the probe of a step gave; nothing where there was none."""
        return self._found[1] if self._found[0] == step else {}

    def _embed(self, encoder: ViT3D) -> Embedding:
        store, rows = self.subset.store, self.subset.rows
        bundle = Bundle(encoder, store.preprocessing, "", {}, self.dtype)
        with _evaluating(encoder):
            parts = [pooled(bundle.encode_hu(hu)) for _, hu in read_batches(store, rows)]
        return Embedding.joined(parts)


@contextmanager
def _evaluating(encoder: ViT3D) -> Iterator[None]:
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)
