"""Writing checkpoints while training goes on: every rank its shard, whole or absent."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from headct.atomic import flush_folder, write_json
from headct.errors import CheckpointError
from headct.train.checkpoint import (
    COUNTERS,
    DESCRIPTION,
    FORMAT,
    Identity,
    folder_name,
    named_tensors,
    newest_first,
    sha256_of,
)
from headct.train.loop import StepRecord, TrainState
from headct.train.runtime import Runtime


class Checkpointer:
    """Hook: saves the state every so many steps, in the background; every rank has one.

    The state is copied to memory while the step waits; files are written while the next steps go
    on. One checkpoint is written at a time. Use it in a `with` block: leaving waits for the last.

    Args:
        folder: RUN/checkpoints.
        identity: of the run.
        every: steps between checkpoints.
        keep: how many to keep.
        runtime: its ranks write together.
    """

    def __init__(
        self, folder: Path, identity: Identity, every: int, keep: int, runtime: Runtime
    ) -> None:
        self.folder, self.identity, self.every, self.keep = folder, identity, every, keep
        self.runtime = runtime
        self.saved_step = -1
        self._pending: Future[Any] | None = None
        # DCP says so in its thread although it is told that there is one process
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except CheckpointError:
            if kind is None:
                raise

    def __call__(self, state: TrainState, record: StepRecord) -> None:
        """Start saving where the step is a multiple of `every`."""
        if self._pending is not None and self._pending.done():
            self.wait()
        if record.step % self.every == 0:
            self.start(state)

    def save(self, state: TrainState) -> None:
        """Save now and wait until it is on the disk."""
        self.start(state)
        self.wait()

    def start(self, state: TrainState) -> None:
        """Copy the state and begin to write it, unless this step is saved."""
        if state.step == self.saved_step:
            return
        self.wait()
        counters = {name: int(getattr(state, name)) for name in COUNTERS}
        writer = _Writer(self.folder, state.step, counters, self.identity, self.keep)
        self.saved_step = state.step
        future = async_save(
            named_tensors(state),
            storage_writer=writer,
            process_group=self.runtime.saving,
            no_dist=self.runtime.world_size == 1,
        )
        assert isinstance(future, Future)
        self._pending = future

    def wait(self) -> None:
        """Until the checkpoint that is being written is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except CheckpointException as error:
            causes = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
            raise CheckpointError(
                f"a checkpoint could not be written: {'; '.join(sorted(causes))}",
                remedy="free some space on the disk of RUN, then give the same command again",
                code="checkpoint-not-written",
            ) from error


class _Writer(HuggingFaceStorageWriter):
    """DCP's safetensors shards, written aside and renamed when all ranks are done."""

    def __init__(
        self,
        folder: Path,
        step: int,
        counters: Mapping[str, int],
        identity: Identity,
        keep: int,
    ) -> None:
        self.final = folder / folder_name(step)
        self.aside = folder / f".{self.final.name}.tmp"
        super().__init__(str(self.aside), save_distributed=True)
        self.about = {"format": FORMAT, "counters": dict(counters), "identity": dict(identity)}
        self.keep = keep

    def finish(self, metadata: Any, results: Any) -> None:  # noqa: ARG002
        """Runs on one rank after all have written: describe, rename, remove the oldest."""
        files = {path.name: sha256_of(path) for path in sorted(self.aside.glob("*.safetensors"))}
        write_json(self.aside / DESCRIPTION, self.about | {"files": files})
        if self.final.exists():  # damaged, since the run went on from an older one
            _remove(self.final)
        self.aside.rename(self.final)
        flush_folder(self.final.parent)
        for old in newest_first(self.final.parent)[self.keep :]:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    """First its name, so that a folder with that name is whole at any moment."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old.tmp")))
