"""LoRA: small low-rank changes to a frozen encoder, folded into its weights at the end."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from headct.config import Config
from headct.errors import UsageError
from headct.model.encoder import ViT3D


class LoraConfig(Config):
    """Which layers are changed, and by how much at most."""

    rank: int = Field(default=0, ge=0)
    """Rank of the changes; 0: no LoRA, all weights are trained."""
    alpha: float = Field(default=16.0, gt=0)
    """Changes are scaled by alpha / rank."""
    layers: tuple[str, ...] = Field(default=("qkv", "proj", "fc1", "fc2"), min_length=1)
    """Linear layers of every block that are changed."""


def add_lora(encoder: ViT3D, config: LoraConfig, seed: int) -> None:
    """Freeze an encoder and give its layers trainable changes that are zero at first.

    Source:
        Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.

    Raises:
        UsageError: peft is not installed, or a layer that the encoder does not have.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError("LoRA needs peft", remedy="pip install 'headct[lora]'") from error
    names = {name.rpartition(".")[2] for name, _ in encoder.blocks.named_modules()}
    unknown = sorted(set(config.layers) - names)
    if unknown:
        raise UsageError(
            f"the encoder's blocks have no layer {', '.join(unknown)}",
            remedy="lora.layers is made of qkv, proj, fc1, fc2",
        )
    encoder.requires_grad_(False)
    where = rf".*blocks\.\d+\..*\.({'|'.join(config.layers)})"
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, encoder)


def fold_lora(encoder: nn.Module) -> None:
    """Add the changes to the weights and take the adapters out: a plain encoder again."""
    from peft.tuners.lora import LoraLayer

    adapted = [(n, m) for n, m in encoder.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(encoder.get_submodule(parent), attribute, layer.get_base_layer())
