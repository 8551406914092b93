"""Memory of earlier views for later ones: fresh memory costs a CPU up to a sixth of its time.

A batch of views is more than `malloc` keeps, so that the system would give it anew at every step,
page by page and zeroed.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import torch
from torch import Tensor

_spare: deque[Tensor] = deque(maxlen=3)
"""Memory that nothing uses: of the global, the local and the clean views of a batch."""


def reused(*shape: int) -> Tensor:
    """[*shape] float32 of any content, on the CPU.

    Its memory serves again once it is gone, with all that was sliced from it.
    """
    n = math.prod(shape)
    memory = _taken(n)
    lent = memory.numpy()[:n]
    weakref.finalize(lent, _spare.append, memory).atexit = False
    return torch.from_numpy(lent).view(shape)


def _taken(n: int) -> Tensor:
    """Spare memory of n numbers or somewhat more; else fresh."""
    unfit = []
    try:
        while True:  # no look before the leap: memory comes back in any thread
            memory = _spare.popleft()
            if n <= memory.numel() <= 4 * n:
                return memory
            unfit.append(memory)
    except IndexError:
        return torch.empty(n)
    finally:
        _spare.extend(unfit)
