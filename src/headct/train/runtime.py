"""The machine a run is on: device, precision, threads, ranks, seeds, signals."""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from headct.errors import TrainingError, UsageError
from headct.views.draws import generator

Precision = Literal["auto", "bf16", "fp32"]
RANK_LOST = "rank-lost"
SAID_BY_EACH_RANK = (
    "`broadcast_buffers` is deprecated",  # its new name is not in torch 2.11
    "torch.distributed.nn.functional.all_gather is deprecated",  # so is that of this
    "Grad strides do not match bucket view strides",  # of a few hundred numbers
)
"""Starts of warnings of torch about which a user can do nothing."""
_PARTED: list[dist.ProcessGroup] = []
"""The group that was left last. Were DDP's reducer the last to hold it, its end would wait for the
group's threads and keep Python's lock, for which they can be waiting (torch 2.14, gloo)."""
RANK_TIMEOUT_S = 300
"""Seconds after which a silent rank counts as dead and the others stop."""


@dataclass(frozen=True)
class Runtime:
    """Where one process computes.

    Attributes:
        device: of this rank.
        dtype: of the matrix products; parameters, losses and norms stay float32.
        rank: 0 .. world_size - 1; rank 0 writes.
        world_size: processes that train together.
        saving: the ranks once more, for checkpoints that are written while they train.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1
    saving: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where chosen."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def free_memory(self) -> int | None:
        """Free bytes of a GPU; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    def seed_step(self, seed: int, step: int) -> None:
        """Make torch's random numbers of a step a function of (seed, step, rank).

        No random state has to be saved for a run to go on exactly where it stopped.
        """
        state = generator(seed, "step", step, self.rank).integers(2**63, dtype=np.int64)
        torch.manual_seed(int(state))

    def mean(self, values: Tensor) -> Tensor:
        """Mean over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def from_main(self, number: int) -> int:
        """The main rank's number, on every rank."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def start_runtime(
    precision: Precision = "auto",
    threads: int | None = None,
    rank_timeout_s: float = RANK_TIMEOUT_S,
) -> Iterator[Runtime]:
    """Take the device and join the other ranks where torchrun or Slurm started several.

    Args:
        precision: auto is bf16 where the hardware multiplies it, else fp32.
        threads: CPU threads of this process; None leaves torch's choice.
        rank_timeout_s: after so long without an answer a rank counts as dead. The process then
            takes no SIGTERM any more: it is about to end.

    Raises:
        UsageError: bf16 asked for on a GPU without it, or more ranks on a machine than GPUs.
        TrainingError: another rank died or does not answer.
    """
    if threads:
        torch.set_num_threads(threads)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = _take_device(int(os.environ.get("LOCAL_RANK", "0")))
    runtime = Runtime(device, choose_dtype(precision, device), rank, world_size)
    if world_size == 1:
        yield runtime
        return
    timeout = timedelta(seconds=rank_timeout_s)
    try:
        _join(device, timeout)
        yield replace(runtime, saving=dist.new_group(backend="gloo", timeout=timeout))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not is_of_another_rank(error):
            raise
        # torchrun ends the others of a lost rank by SIGTERM; this one ends by itself, and says why
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise TrainingError(
            f"rank {rank} of {world_size} stops: another rank died or has not answered for"
            f" {rank_timeout_s:.0f} s",
            remedy="its own message, or the table of torchrun, has the cause; the same command"
            " goes on from the last checkpoint (torchrun --max-restarts 3 does so by itself)",
            code=RANK_LOST,
        ) from error
    finally:
        part()


def part() -> None:
    """Leave the other ranks, where there are some."""
    if dist.is_initialized():
        assert dist.group.WORLD is not None
        _PARTED[:] = [dist.group.WORLD]
        dist.destroy_process_group()


def _join(device: torch.device, timeout: timedelta) -> None:
    """Meet the other ranks, by the environment that torchrun or submitit made."""
    for words in SAID_BY_EACH_RANK:
        warnings.filterwarnings("ignore", message=re.escape(words))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # torchrun hands the same store to restarted ranks, and in it stand the addresses of the dead.
    # On one node all ranks agree on the number of restarts; agents of several count their own.
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def _take_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"there is no GPU {local_rank} for this rank",
            remedy=f"start {torch.cuda.device_count()} ranks on this machine",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def is_of_another_rank(error: Exception) -> bool:
    """Whether torch says that a peer is gone; gloo's errors have no type of their own."""
    if not isinstance(error, RuntimeError):
        return False
    words = ("gloo", "connection", "timed out", "timeout", "peer")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products for a precision on a device."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    if precision == "bf16" and device.type == "cuda" and not has_bf16:
        raise UsageError("this GPU has no bf16", remedy="--set precision=fp32")
    wanted = precision == "bf16" or (precision == "auto" and has_bf16)
    return torch.bfloat16 if wanted else torch.float32


class StopRequest:
    """Whether somebody asked the run to stop: Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 (Slurm).

    The first signal lets the step end and a checkpoint be written; a second Ctrl-C stops at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Whether to stop after this step."""
        return self.requested

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals while the block runs; only the main thread can.

        One that the block gave another handler keeps it.
        """
        before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self._note:
                    signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
