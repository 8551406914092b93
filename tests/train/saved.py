"""What a checkpoint holds, read without headct."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors by name; the shards of one are put together again, in the order of the ranks."""
    parts: dict[str, list[torch.Tensor]] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            parts.setdefault(name, []).append(tensor)
    return {name: part[0] if len(part) == 1 else torch.cat(part) for name, part in parts.items()}
