"""Formulas of self-distillation: how far views agree, and what keeps scans apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def n_pairs(n_views: int, n_teacher: int) -> int:
    """Pairs of a student view and a teacher view that are not the same view."""
    return n_views * n_teacher - n_teacher


def view_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine distance over all pairs of a student view and the teacher of another view.

    Args:
        student: [v b e] unit vectors; the first g views are the teacher's.
        teacher: [g b e] unit vectors.

    Reads as:
        mean over i < v, j < g, i != j, and scans b, of 1 - student[i, b] . teacher[j, b]
    """
    cosine = torch.einsum("vbe,gbe->vg", student, teacher) / student.shape[1]
    same = cosine.diagonal().sum()
    return 1.0 - (cosine.sum() - same) / n_pairs(*cosine.shape)


def view_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all pairs of a student view and the teacher of another view.

    Args:
        logits: [v b k] of the student, divided by its temperature; the first g are the teacher's.
        targets: [g b k], each row sums to 1.

    Reads as:
        mean over i < v, j < g, i != j, and scans b, of
        -sum_k targets[j, b, k] log softmax(logits[i, b])[k]
    """
    cross = -torch.einsum("vbk,gbk->vg", F.log_softmax(logits, dim=-1), targets) / logits.shape[1]
    return (cross.sum() - cross.diagonal().sum()) / n_pairs(*cross.shape)


def coding_rate(z: Tensor, eps: float) -> Tensor:
    """0.5 logdet(I + d / (n eps^2) Z'Z): how much room n vectors of length d take.

    Args:
        z: [n d]; unit vectors where it is compared between batches.
        eps: distortion.

    Source:
        Ma et al. 2007; by Sylvester's identity the smaller of Z'Z and ZZ' is used.
    """
    n, d = z.shape
    gram = z @ z.T if n < d else z.T @ z
    eye = torch.eye(len(gram), device=z.device, dtype=z.dtype)
    # always positive definite: a check would only make a GPU wait, and a NaN is the loop's matter
    factor: Tensor = torch.linalg.cholesky_ex(eye + d / (n * eps**2) * gram).L
    return factor.diagonal().log().sum()


@torch.no_grad()
def sinkhorn_targets(
    logits: Tensor, temperature: float, n_iterations: int, used: Tensor | None = None
) -> Tensor:
    """Soft assignments in which every prototype is used about equally often.

    Args:
        logits: [n k] cosines.
        temperature: lower is sharper.
        n_iterations: of evening out prototypes, then samples.
        used: [n] bool, the rows that count; None: all.

    Returns:
        [n k]; rows sum to 1, columns to about n / k; 0 in the rows that do not count.

    Source:
        Cuturi 2013, algorithm 1, with its two vectors; Caron et al. 2020, appendix.
    """
    likeness = (logits - logits.max()).div_(temperature).exp_()
    counts = logits.new_ones(len(logits)) if used is None else used.to(logits.dtype)
    wanted = counts.sum() / logits.shape[1]  # of every column
    of_row = counts
    with torch.autocast(logits.device.type, enabled=False):  # sums, not products for it to round
        for _ in range(n_iterations):
            of_column = wanted / (likeness.T @ of_row).clamp_(min=1e-30)
            of_row = counts / (likeness @ of_column).clamp_(min=1e-30)
    return likeness.mul_(of_column).mul_(of_row[:, None])


@torch.no_grad()
def centred_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Softmax of the teacher's logits [... k] less their centre [k], sharpened by a temperature.

    Reads as:
        exp((logits[n, k] - centre[k]) / temperature) / sum over k of the same

    Source:
        Caron et al. 2021, algorithm 1.
    """
    return torch.softmax((logits - centre) / temperature, dim=-1)


def koleo(cls: Tensor) -> Tensor:
    """-mean log of the distance from each unit vector to its nearest neighbour in the batch.

    Args:
        cls: [n d], n >= 2.

    Source:
        Sablayrolles et al. 2019.
    """
    unit = F.normalize(cls.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-1.0).argmax(dim=1)
    distance = F.pairwise_distance(unit, unit[nearest], eps=1e-8)
    return -(distance + 1e-8).log().mean()
