"""The full training state as safetensors: reading, choosing the newest whole one, restoring.

RUN/checkpoints/step-00000500/
    shard-00001-...safetensors   one file per rank that wrote, through torch's DCP
        module.*                 parameters and buffers: student, teacher, heads
        optimizer.KEY.NAME       the optimizer's moments of the parameter NAME
    checkpoint.json              format, counters, identity of the run, SHA-256 of each file

A folder with that name is whole, however the process ended; nothing in it is pickled. Any number of
ranks can read what any other number wrote. No random state is in it: every random number follows
from (seed, step) or (seed, epoch, position).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from headct.errors import CheckpointError, MismatchError
from headct.train.loop import TrainState
from headct.train.runtime import Runtime

FORMAT = "headct-checkpoint-2"
DESCRIPTION = "checkpoint.json"
COUNTERS = ("step", "seen_scans", "skipped_steps", "skipped_in_a_row")
SHOWN_KEYS = 20
NONE, DAMAGED = -1, -2
"""Said instead of a step by the rank that looks for checkpoints."""
Identity = Mapping[str, str]
"""What must be the same for a run to go on, e.g. recipe and store: name -> hash."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    folder: Path
    counters: dict[str, int]
    identity: dict[str, str]


def folder_name(step: int) -> str:
    """Name of the checkpoint of a step; sorts by step."""
    return f"step-{step:08d}"


def newest_first(folder: Path) -> list[Path]:
    """Checkpoints in a folder, whole or not."""
    return sorted(folder.glob("step-*"), reverse=True)


def read_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint, checked file by file against what was written.

    Args:
        path: its folder.
        verify: False leaves the files unread, where another rank has looked.

    Raises:
        CheckpointError: truncated, altered, incomplete, or of another format.
    """
    try:
        about = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(f"{path.name} is not a {FORMAT}", remedy="start a new run")
        files = about["files"].items() if verify else ()
        altered = [name for name, sha256 in files if sha256_of(path / name) != sha256]
        counters = {name: int(about["counters"][name]) for name in COUNTERS}
        identity = {str(name): str(value) for name, value in about["identity"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is damaged", remedy="use an earlier one") from error
    if altered:
        raise CheckpointError(
            f"{path.name} is damaged: {', '.join(altered)}", remedy="use an earlier one"
        )
    return Checkpoint(path, counters, identity)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, None where there is none yet; damaged ones are passed over.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    paths = newest_first(folder)
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


def agreed_checkpoint(folder: Path, runtime: Runtime) -> Checkpoint | None:
    """The newest whole checkpoint, the same on every rank: the main one looks, the others follow.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    step = NONE
    if runtime.is_main:
        try:
            found = latest_checkpoint(folder)
        except CheckpointError:
            runtime.from_main(DAMAGED)
            raise
        step = NONE if found is None else found.counters["step"]
    step = runtime.from_main(step)
    if step == DAMAGED:
        raise CheckpointError("no checkpoint is whole", remedy="see the message of rank 0")
    return None if step == NONE else read_checkpoint(folder / folder_name(step), verify=False)


def restore(state: TrainState, checkpoint: Checkpoint, identity: Identity) -> None:
    """Put a checkpoint into the state, strictly; every rank reads the parts that it holds.

    Raises:
        MismatchError: it belongs to another recipe or store.
        CheckpointError: it is of another architecture; the keys are listed.
    """
    require_same_identity(checkpoint.identity, identity)
    reader = HuggingFaceStorageReader(str(checkpoint.folder))
    try:
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint.folder.name} is damaged", remedy="use an earlier one"
        ) from error
    shapes = {name: entry.size for name, entry in saved.items()}
    module = {f"module.{name}": t for name, t in state.module.state_dict().items()}
    moments = _room_for_moments(state.optimizer, shapes)
    _require_same_keys(shapes, {name: t.shape for name, t in (module | moments).items()})
    load(module | moments, storage_reader=reader, no_dist=True)
    _put_moments(state.optimizer, moments)
    for name in COUNTERS:
        setattr(state, name, checkpoint.counters[name])


def named_tensors(state: TrainState) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, by name."""
    tensors = {f"module.{name}": t for name, t in state.module.state_dict().items()}
    for name, parameter in _named(state.optimizer):
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    return tensors


def set_damaged_aside(folder: Path, used: Checkpoint) -> list[str]:
    """Take another name from checkpoints newer than the one that a run goes on from.

    They were passed over, and must neither count among those that are kept nor be lost: it may have
    been the disk that did not answer.

    Returns:
        Their names; each is now `damaged-NAME`.
    """
    names = [path.name for path in newest_first(folder) if path.name > used.folder.name]
    for name in names:
        aside = folder / f"damaged-{name}"
        if aside.exists():
            shutil.rmtree(aside)
        (folder / name).rename(aside)
    return names


def remove_leftovers(folder: Path) -> None:
    """Remove half-written checkpoints of a killed run; only while no other run writes here."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path)


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _room_for_moments(
    optimizer: torch.optim.Optimizer, shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Zeros for the moments that were saved, on the parameter's device and sharded as it is."""
    room = {}
    parameters = dict(_named(optimizer))
    for entry, shape in shapes.items():
        part, _, rest = entry.partition(".")
        _, _, name = rest.partition(".")
        if part == "optimizer" and name in parameters:
            parameter = parameters[name].detach()
            is_number = shape == torch.Size([])  # AdamW's count of steps
            number = torch.zeros((), device=parameter.device)
            room[entry] = number if is_number else torch.zeros_like(parameter)
    return room


def _put_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """`load_state_dict` would go by position; ours goes by name."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for entry, tensor in moments.items():
        _, key, name = entry.split(".", 2)
        by_name.setdefault(name, {})[key] = tensor
    for name, parameter in _named(optimizer):
        if name in by_name:
            optimizer.state[parameter] = by_name[name]


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def require_same_identity(saved: Mapping[str, str], identity: Identity) -> None:
    """Raise MismatchError where a checkpoint belongs to another recipe or store."""
    differing = [name for name in identity if saved.get(name) != identity[name]]
    if differing:
        pairs = [f"{name} {saved.get(name)}, now {identity[name]}" for name in differing]
        raise MismatchError(
            f"the run in this folder was started with another {' and '.join(differing)}"
            f" ({'; '.join(pairs)})",
            remedy="give the same recipe and store, or another --out",
        )


def _require_same_keys(saved: Mapping[str, torch.Size], own: Mapping[str, torch.Size]) -> None:
    faults = [f"missing {name}" for name in own.keys() - saved.keys()]
    faults += [f"unexpected {name}" for name in saved.keys() - own.keys()]
    faults += [
        f"{name} is {list(saved[name])}, not {list(own[name])}"
        for name in own.keys() & saved.keys()
        if saved[name] != own[name]
    ]
    if faults:
        more = [f"and {len(faults) - SHOWN_KEYS} more"] if len(faults) > SHOWN_KEYS else []
        raise CheckpointError(
            "the checkpoint belongs to another architecture:\n  "
            + "\n  ".join(sorted(faults)[:SHOWN_KEYS] + more),
            remedy="use the recipe that the run was started with",
        )
