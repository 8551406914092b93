"""Guards: numbers that tell a collapsing run from a learning one, and when to raise an alarm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

CLS_STD_ALARM = 0.1
LOW_MEAN_ENTROPY_ALARM = 0.5
HIGH_TARGET_ENTROPY_ALARM = 0.98


@torch.no_grad()
def cls_std(cls: Tensor) -> Tensor:
    """Spread of unit CLS vectors over the batch, 1 where they are spread evenly over the sphere.

    Mean over numbers of the standard deviation over the batch, times sqrt(d); healthy 0.4-1.

    Args:
        cls: [n d], one view per scan.
    """
    unit = F.normalize(cls.float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(cls.shape[-1])


@torch.no_grad()
def effective_rank(cls: Tensor) -> Tensor:
    """exp(entropy) of the normalised singular values of the centred CLS vectors [n d].

    At most min(n - 1, d); 1 where they lie on a line; nan where a vector is not finite.

    Source:
        Roy and Vetterli 2007.
    """
    centred = cls.double() - cls.double().mean(dim=0)
    n, d = centred.shape
    # eigenvalues of the smaller product: a GPU takes longer for singular values than for the step
    gram = centred @ centred.T if n < d else centred.T @ centred
    finite = gram.isfinite().all()
    try:  # the solver raises for what is not finite, and a step that is not is the loop's matter
        squares = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return gram.new_full((), math.nan)
    values = squares.clamp(min=0.0).sqrt()
    share: Tensor = values / values.sum().clamp(min=1e-12)
    return torch.exp(torch.special.entr(share).sum()).where(finite, math.nan)


@torch.no_grad()
def entropy_shares(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the mean teacher target, and mean entropy of a target, as shares of log k.

    The first falls when few prototypes are used, the second rises when targets say nothing.

    Args:
        targets: [n k], each row sums to 1.
    """
    most = math.log(targets.shape[-1])
    of_mean = torch.special.entr(targets.mean(dim=0)).sum() / most
    mean_of = torch.special.entr(targets).sum(dim=-1).mean() / most
    return of_mean, mean_of


def alarms(metrics: Mapping[str, float]) -> list[str]:
    """What is wrong, in words, from the metrics of a step; empty where all is well.

    Alarms are about self-distillation: without it nothing asks CLS to differ between scans.
    """
    found: list[str] = []
    if "cls_loss" not in metrics:
        return found
    if metrics.get("cls_std", 1.0) < CLS_STD_ALARM:
        found.append(f"CLS is nearly the same for every scan (std {metrics['cls_std']:.2f})")
    if metrics.get("teacher_entropy", 1.0) < LOW_MEAN_ENTROPY_ALARM:
        found.append(f"few prototypes are used (entropy {metrics['teacher_entropy']:.2f} log k)")
    if metrics.get("target_entropy", 0.0) > HIGH_TARGET_ENTROPY_ALARM:
        found.append(f"targets are uniform (entropy {metrics['target_entropy']:.2f} log k)")
    return found
