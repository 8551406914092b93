"""Weight files that others made: nothing in them is run, and prefixes of wrappers come off."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headct.errors import CheckpointError

NESTS = ("teacher", "state_dict", "model_state_dict", "model", "student", "network", "encoder")
"""Keys under which training code keeps the weights, in the order of preference."""
BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")  # without a disk behind them, they exist on every system
        for pure, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
        for module in ("pathlib", "pathlib._local")
    ),
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"),
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
]
"""Settings and figures that training code saves too; making one of them runs nothing."""
TORCH_STARTS = (b"PK", b"\x80")
"""First bytes of a torch file: a zip archive, or a pickle of torch before 1.6."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file that holds nothing but data.

    Args:
        path: the file; of a torch file the tensors themselves, or a mapping with them under one of
            NESTS, beside numbers (numpy's, too), text, paths and settings (`argparse.Namespace`).

    Raises:
        CheckpointError: no such file, damaged, without tensors, or one that would run code.
    """
    if not path.is_file():
        raise CheckpointError("there is no such weight file", remedy="check the path")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as handle:
            if not handle.read(2).startswith(TORCH_STARTS):
                raise ValueError("no torch file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what is refused is said
            with torch.serialization.safe_globals(BESIDE_WEIGHTS):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            "the weight file cannot be read", remedy="download it again; is it complete?"
        ) from error
    except Exception as error:  # what weights_only met is neither tensors nor plain values
        raise CheckpointError(
            "the weight file holds more than data, and opening it could run code",
            remedy="ask its authors for safetensors, or save only its state_dict",
        ) from error
    return _tensors(found)


def _tensors(found: Any) -> dict[str, Tensor]:
    while isinstance(found, Mapping):
        nest = next((found[key] for key in NESTS if isinstance(found.get(key), Mapping)), None)
        if nest is None:
            break
        found = nest
    tensors = {}
    if isinstance(found, Mapping):
        tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError("there are no weights in the file", remedy="is it the right file?")
    return tensors


def strip_prefix(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights under the one prefix that holds the most of the names wanted, without it.

    Wrappers and larger models put their own words before a name (`module.`, `backbone.`,
    `encode_image.`); what lies beside that prefix belongs to other parts and is left out. Of a
    student and a teacher in one file the teacher is taken.

    Args:
        weights: by name.
        wanted: names of the module that is to be filled.
    """
    endings = set(wanted)
    counts: dict[str, int] = {}
    for name in weights:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in endings:
                prefix = "".join(f"{part}." for part in parts[:i])
                counts[prefix] = counts.get(prefix, 0) + 1
    if not counts:
        return dict(weights)
    best = max(counts, key=lambda p: (counts[p], "teacher" in p, -len(p)))
    return {k.removeprefix(best): v for k, v in weights.items() if k.startswith(best)}


def require_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a weight is NaN or infinite in float32; names the first such key.

    Args:
        weights: by name, in the order of the file.
    """
    bad = [name for name, tensor in weights.items() if not tensor.float().isfinite().all()]
    if bad:
        raise CheckpointError(
            f"the weight file holds NaN or infinite numbers, first in {bad[0]}"
            f" ({len(bad)} of {len(weights)} keys)",
            remedy="take a checkpoint from before training diverged, or download it again",
            code="nonfinite-weights",
        )


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
