"""How the objective is spread over devices: compiled, recomputed, replicated or sharded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from headct.config import Config
from headct.model.blocks import Block
from headct.objective.joint import JointObjective
from headct.train.runtime import RANK_TIMEOUT_S, Runtime


class ComputeConfig(Config):
    """How a run is computed: rounding at most, not what is learned; may change between calls."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Several ranks: ddp gives each all weights; fsdp (FSDP2) shards weights and moments."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: a third more compute for far less memory."""
    compile: bool = False
    """torch.compile of every block and of L_pix; the first steps take minutes."""
    readers: int = Field(default=4, ge=1)
    """Threads that read scans ahead."""
    rank_timeout_s: float = Field(default=RANK_TIMEOUT_S, gt=0)
    """Seconds after which a silent rank counts as dead and the others stop."""


def prepare(module: nn.Module, config: ComputeConfig, runtime: Runtime) -> nn.Module:
    """What to call for a forward pass; call it before the optimizer is made.

    The module is changed in place, its parameters keep their names. With `fsdp` they become
    sharded tensors, the module is what is returned.
    """
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    for block in blocks:
        _wrap_forward(block, config)
    if config.compile and isinstance(module, JointObjective):
        module.pull = torch.compile(module.pull, dynamic=True)
    if runtime.world_size == 1:
        return module
    if config.strategy == "fsdp":
        mesh = torch.distributed.device_mesh.init_device_mesh(
            runtime.device.type, (runtime.world_size,)
        )
        for part in (*blocks, module):
            fully_shard(part, mesh=mesh)
        return module
    # the set of used parameters changes when a staged term sets in
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


def share_gradients(forward: nn.Module, share: bool) -> None:
    """Whether the next backward pass averages gradients over ranks, or only adds them up here."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(share)
    elif isinstance(forward, DistributedDataParallel):
        forward.require_backward_grad_sync = share


def whole(module: nn.Module, make: Callable[[], nn.Module], runtime: Runtime) -> nn.Module | None:
    """The module with all its weights, on the main rank; None elsewhere. Every rank must call it.

    Args:
        module: sharded or not; where it is not, it is handed back.
        make: makes another of the same architecture on the device, to be filled.
        runtime: whose ranks hold the shards.
    """
    if not isinstance(module, FSDPModule):
        return module if runtime.is_main else None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(module, options=options)
    if not runtime.is_main:
        return None
    full = make()
    full.load_state_dict(weights)
    return full


def _wrap_forward(block: Block, config: ComputeConfig) -> None:
    forward: Callable[..., Any] = block.forward
    if config.compile:
        forward = torch.compile(forward, dynamic=True)
    if config.activation_checkpointing:
        forward = partial(checkpoint, forward, use_reentrant=False)
    block.forward = forward  # type: ignore[method-assign]
