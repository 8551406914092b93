"""What a checkpoint holds, read without headct."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of the files of one rank; for several ranks' shards see `restore`."""
    (file,) = checkpoint.glob("*.safetensors")
    return load_file(file)
