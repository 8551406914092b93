"""The full training state in one safetensors file: whole or absent, checked, never pickled.

    RUN/checkpoints/step-00000500.safetensors
        module.*        parameters and buffers: student, teacher, heads
        optimizer.NAME.*  AdamW's moments of the parameter NAME
        metadata        format, counters, identity of the run, SHA-256 of the tensors

No random state is in it: every random number follows from (seed, step) or (seed, epoch, position).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headct.atomic import replacing
from headct.errors import CheckpointError, MismatchError
from headct.model.bundle import load_strictly
from headct.train.loop import StepRecord, TrainState
from headct.train.runtime import Runtime

FORMAT = "headct-checkpoint-1"
COUNTERS = ("step", "seen_scans", "skipped_steps", "skipped_in_a_row")
Identity = Mapping[str, str]
"""What must be the same for a run to go on, e.g. recipe and store: name -> hash."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    tensors: dict[str, Tensor]
    counters: dict[str, int]
    identity: dict[str, str]


def save_checkpoint(folder: Path, state: TrainState, identity: Identity, keep: int) -> Path:
    """Write the state under its step and remove all but the last `keep` checkpoints."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in _flatten(state).items()}
    metadata = {
        "format": FORMAT,
        "counters": json.dumps({name: getattr(state, name) for name in COUNTERS}),
        "identity": json.dumps(dict(identity)),
        "sha256": _digest(tensors),
    }
    path = folder / f"step-{state.step:08d}.safetensors"
    with replacing(path) as aside:
        save_file(tensors, aside, metadata)
    for old in _newest_first(folder)[keep:]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        CheckpointError: truncated, altered, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged", remedy="use an earlier one") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path.name} is not a {FORMAT} file", remedy="start a new run")
    if metadata["sha256"] != _digest(tensors):
        raise CheckpointError(f"{path.name} was altered", remedy="use an earlier one")
    return Checkpoint(tensors, json.loads(metadata["counters"]), json.loads(metadata["identity"]))


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, None where there is none yet; damaged ones are passed over.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            print(f"{error}; trying the one before", file=sys.stderr)
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints is whole",
            remedy="restore one from a copy, or remove the run and start again",
        )
    return None


def restore(state: TrainState, checkpoint: Checkpoint, identity: Identity) -> None:
    """Put a checkpoint into the state, strictly.

    Raises:
        MismatchError: it belongs to another recipe or store.
        CheckpointError: it is of another architecture; the keys are listed.
    """
    _require_same(checkpoint.identity, identity)
    parts = _split(checkpoint.tensors)
    load_strictly(state.module, parts["module"], "the checkpoint")
    _load_moments(state.optimizer, parts["optimizer"])
    for name in COUNTERS:
        setattr(state, name, checkpoint.counters[name])


class Checkpointer:
    """Hook: saves the state every so many steps, on the main rank.

    Args:
        folder: RUN/checkpoints.
        identity: of the run.
        every: steps between checkpoints.
        keep: how many to keep.
        runtime: only its main rank writes.
    """

    def __init__(
        self, folder: Path, identity: Identity, every: int, keep: int, runtime: Runtime
    ) -> None:
        self.folder, self.identity, self.every, self.keep = folder, identity, every, keep
        self.runtime = runtime
        self.saved_step = -1

    def __call__(self, state: TrainState, record: StepRecord) -> None:
        """Save where the step is a multiple of `every`."""
        if record.step % self.every == 0:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Save now, unless this step is saved."""
        if self.runtime.is_main and state.step != self.saved_step:
            save_checkpoint(self.folder, state, self.identity, self.keep)
        self.saved_step = state.step
        self.runtime.barrier()


def remove_leftovers(folder: Path) -> None:
    """Remove half-written files that a killed run left; only while no other run writes here."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _flatten(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"module.{name}": t for name, t in state.module.state_dict().items()}
    for name, parameter in _named(state.optimizer):
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def _split(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts


def _load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """`load_state_dict` would go by position; ours goes by name."""
    moments: dict[str, dict[str, Tensor]] = {}
    for entry, tensor in saved.items():
        key, _, name = entry.partition(".")
        moments.setdefault(name, {})[key] = tensor
    for name, parameter in _named(optimizer):
        if name in moments:
            optimizer.state[parameter] = {
                key: tensor.to(parameter.device) for key, tensor in moments[name].items()
            }


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _require_same(saved: Mapping[str, str], identity: Identity) -> None:
    differing = [name for name in identity if saved.get(name) != identity[name]]
    if differing:
        raise MismatchError(
            f"the run in this folder was started with another {' and '.join(differing)}",
            remedy="give the same recipe and store, or another --out",
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
