"""Self-distillation on CLS (L_cls): every student view agrees with the teacher of the other view.

Two ways to keep all scans from getting the same vector:
    coding-rate   unit vectors spread out by their coding rate; no prototypes, no temperatures
    sinkhorn      assignment to prototypes, evened out over the batch
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headct.config import Config
from headct.model.heads import ProjectionHead
from headct.objective.guards import entropy_shares
from headct.objective.mae import TermConfig
from headct.objective.ranks import gathered, mean_over_ranks, own_rows

KOLEO_FROM_SCANS = 16
Terms = tuple[Tensor, dict[str, Tensor]]


class CodingRateConfig(Config):
    """Spread by coding rate."""

    gamma: float = Field(default=0.005, gt=0.0)
    """Weight of the coding rate against the distance between views, at the start."""
    eps: float = Field(default=0.5, gt=0.0)
    """Distortion of the code; larger looks at coarser structure."""
    distance_band: tuple[float, float] = (0.05, 0.25)
    """Mean cosine distance between views that gamma is steered to stay in."""
    steer: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share by which gamma changes after a step outside the band; 0 keeps gamma."""


class SinkhornConfig(Config):
    """Prototypes with evened-out teacher targets."""

    n_prototypes: int = Field(default=1024, gt=1)
    """65,536 for a global batch >= 1,024; 8,192 at 256; 1,024 at 64."""
    n_iterations: int = Field(default=3, gt=0)
    """Sinkhorn-Knopp iterations."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """At the start, and from `warm_fraction` of the run on."""
    warm_fraction: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the run over which the teacher's temperature rises."""
    student_temperature: float = Field(default=0.1, gt=0.0)
    frozen_fraction: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of the run in which prototypes get no gradient."""
    n_queue: int = Field(default=2048, ge=0)
    """Teacher vectors of earlier steps that take part in evening out; for global batches < 256."""
    koleo: float = Field(default=0.1, ge=0.0)
    """Weight of KoLeo on CLS; left out under 16 scans."""


class ClsConfig(TermConfig):
    """L_cls."""

    weight: float = Field(default=1.0, ge=0.0)
    ramp: tuple[float, float] = (0.1, 0.3)
    objective: Literal["coding-rate", "sinkhorn"] = "coding-rate"
    hidden: int = Field(default=2048, gt=0)
    """Width of the projection head."""
    out: int = Field(default=256, gt=0)
    """Length of its unit vector."""
    coding_rate: CodingRateConfig = CodingRateConfig()
    sinkhorn: SinkhornConfig = SinkhornConfig()


class SelfDistillation(nn.Module):
    """Heads of student and teacher, and what both objectives share."""

    def __init__(self, width: int, config: ClsConfig, n_prototypes: int = 0) -> None:
        super().__init__()
        self.student = ProjectionHead(width, config.hidden, config.out, n_prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def after_step(self) -> None:
        """Change what changes between steps, other than by gradient and momentum."""


class CodingRate(SelfDistillation):
    """Cosine distance between views minus gamma times the coding rate of the batch.

    Source:
        Wu et al. 2025 (SimDINO).
    """

    gamma: Tensor
    distance: Tensor

    def __init__(self, width: int, config: ClsConfig) -> None:
        super().__init__(width, config)
        self.config = config.coding_rate
        self.register_buffer("gamma", torch.tensor(self.config.gamma))
        middle = sum(self.config.distance_band) / 2
        self.register_buffer("distance", torch.tensor(middle), persistent=False)

    def forward(self, views: Tensor, teacher: Tensor, step_fraction: float) -> Terms:  # noqa: ARG002
        """The term and what to log.

        Args:
            views: [v b d] student CLS; the first g are the global views, in the teacher's order.
            teacher: [g b d] teacher CLS of the global views.
            step_fraction: not used, there is no schedule here.
        """
        student = self.student(views)
        with torch.no_grad():
            target = self.teacher(teacher)
        distance = view_distance(student, target)
        rates = [coding_rate(gathered(z), self.config.eps) for z in student[: len(target)]]
        rate = torch.stack(rates).mean()
        self.distance = mean_over_ranks(distance.detach())
        loss = distance - self.gamma * rate
        seen = {"view_distance": distance, "coding_rate": rate, "gamma": self.gamma.clone()}
        return loss, seen

    def after_step(self) -> None:
        """Steer gamma: views of one scan too far apart lower it, too close together raise it."""
        low, high = self.config.distance_band
        too_close, too_far = self.distance < low, self.distance > high
        self.gamma *= 1.0 + self.config.steer * (too_close.float() - too_far.float())


class Sinkhorn(SelfDistillation):
    """Cross-entropy to evened-out prototype assignments of the teacher, and KoLeo.

    Source:
        Caron et al. 2021 (DINO); Caron et al. 2020 (SwAV); Oquab et al. 2023 (DINOv2).
    """

    queue: Tensor
    n_queued: Tensor

    def __init__(self, width: int, config: ClsConfig) -> None:
        super().__init__(width, config, config.sinkhorn.n_prototypes)
        self.config = config.sinkhorn
        self.register_buffer("queue", torch.zeros(self.config.n_queue, config.out))
        self.register_buffer("n_queued", torch.tensor(0))
        self._waiting: list[Tensor] = []

    def forward(self, views: Tensor, teacher: Tensor, step_fraction: float) -> Terms:
        """The term and what to log; arguments as for `CodingRate.forward`."""
        config = self.config
        frozen = step_fraction < config.frozen_fraction
        logits = self.student.logits(self.student(views), frozen=frozen)
        targets = self.targets(teacher, step_fraction)
        loss = view_cross_entropy(logits / config.student_temperature, targets)
        of_mean, mean_of = entropy_shares(targets.flatten(0, 1))
        seen = {"teacher_entropy": of_mean, "target_entropy": mean_of}
        if config.koleo > 0.0 and views.shape[1] >= KOLEO_FROM_SCANS:
            seen["koleo_loss"] = torch.stack([koleo(cls) for cls in views[: len(targets)]]).mean()
            loss = loss + config.koleo * seen["koleo_loss"]
        return loss, seen

    @torch.no_grad()
    def targets(self, teacher: Tensor, step_fraction: float) -> Tensor:
        """Assignments of the teacher's views: [g b k], evened out together with the queue."""
        unit = self.teacher(teacher)  # [g b out]
        own = unit.flatten(0, 1)
        everyone = gathered(own)
        if self.training:
            self._waiting.append(everyone)
        known = torch.cat([everyone, self.queue[: int(self.n_queued)]])
        assigned = sinkhorn_targets(
            self.teacher.logits(known), self.temperature(step_fraction), self.config.n_iterations
        )
        return assigned[own_rows(len(own))].view(*unit.shape[:2], -1)

    def temperature(self, step_fraction: float) -> float:
        """The teacher's temperature after a share of the run."""
        start, end = self.config.teacher_temperature
        return start + (end - start) * min(step_fraction / self.config.warm_fraction, 1.0)

    def after_step(self) -> None:
        """Put the step's teacher vectors in front of the queue."""
        if self.config.n_queue and self._waiting:
            filled = torch.cat([*self._waiting, self.queue[: int(self.n_queued)]])
            filled = filled[: self.config.n_queue]
            self.queue[: len(filled)] = filled
            self.n_queued.fill_(len(filled))
        self._waiting.clear()


def self_distillation(width: int, config: ClsConfig) -> CodingRate | Sinkhorn:
    """The objective that a config names."""
    return Sinkhorn(width, config) if config.objective == "sinkhorn" else CodingRate(width, config)


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
    factor: Tensor = torch.linalg.cholesky(eye + d / (n * eps**2) * gram)
    return factor.diagonal().log().sum()


@torch.no_grad()
def sinkhorn_targets(logits: Tensor, temperature: float, n_iterations: int) -> Tensor:
    """Soft assignments in which every prototype is used about equally often.

    Args:
        logits: [n k] cosines.
        temperature: lower is sharper.
        n_iterations: of evening out prototypes, then samples.

    Returns:
        [n k]; rows sum to 1, columns to about n / k.

    Source:
        Cuturi 2013; Caron et al. 2020, appendix.
    """
    q = torch.exp((logits - logits.max()) / temperature)
    n, k = q.shape
    for _ in range(n_iterations):
        q = q / q.sum(dim=0, keepdim=True) / k
        q = q / q.sum(dim=1, keepdim=True) / n
    return q * n


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
