"""Muon: a weight matrix moves by its orthogonalised momentum, with steps of AdamW's size.

torch's own optimizer orthogonalises in bfloat16 wherever it is; on a CPU that does not multiply
bfloat16 that took 45 % of a demo step. Here float32 does it there (decision 0057).

Source:
    Jordan et al. 2024, Muon: An optimizer for hidden layers; Liu et al. 2025, Muon is scalable for
    LLM training, section 2.2, for the size of its steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headct.train.runtime import choose_dtype

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of x -> a x + b x^3 + c x^5 on singular values: steepest at 0, and near 1 after
`N_ITERATIONS`."""
N_ITERATIONS = 5
RMS = 0.2
"""Of an update of AdamW."""


@torch.no_grad()
def move_by_muon(parameter: Tensor, momentum: Tensor, lr: float, weight_decay: float) -> None:
    """One step of a weight matrix [n m] along its gradient, which must be there.

    Args:
        parameter: changed in place.
        momentum: moving mean of its gradients, of the same shape; changed in place.
        lr: of this step.
        weight_decay: as a share of the rate.
    """
    gradient = parameter.grad
    assert gradient is not None
    momentum.lerp_(gradient, 1 - MOMENTUM)
    ahead = gradient.lerp(momentum, MOMENTUM)
    update = orthogonalised(ahead, choose_dtype("auto", parameter.device))
    parameter.mul_(1 - lr * weight_decay)
    parameter.add_(update, alpha=-lr * RMS * math.sqrt(max(parameter.shape)))


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U S V^T -> about U V^T: all but very small singular values end between 0.6 and 1.2.

    Args:
        matrix: [n m].
        dtype: of the products and of what comes back.
    """
    a, b, c = QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x.to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
