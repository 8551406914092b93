"""Self-distillation on CLS (L_cls): every student view agrees with the teacher of the other view.

Three ways to keep all scans from getting the same vector:
    coding-rate   unit vectors spread out by their coding rate; no prototypes, no temperatures
    sinkhorn      assignment to prototypes, evened out over the batch
    centring      assignment to prototypes, centred and sharpened as DINO was published
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from headct.model.heads import ProjectionHead
from headct.objective.agreement import (
    centred_targets,
    coding_rate,
    koleo,
    sinkhorn_targets,
    view_cross_entropy,
    view_distance,
)
from headct.objective.dino_config import KOLEO_FROM_SCANS, ClsConfig, PrototypeConfig
from headct.objective.guards import entropy_shares
from headct.objective.ranks import gathered, mean_over_ranks, own_rows

Terms = tuple[Tensor, dict[str, Tensor]]


class SelfDistillation(nn.Module):
    """Heads of student and teacher, and what both objectives share."""

    def __init__(self, width: int, config: ClsConfig, n_prototypes: int = 0) -> None:
        super().__init__()
        self.student = ProjectionHead(width, config.hidden, config.out, n_prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def after_step(self) -> None:
        """Change what changes between steps, other than by gradient and momentum."""

    def after_skip(self) -> None:
        """Forget what a step that is not applied has left."""


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


class Prototypes(SelfDistillation, ABC):
    """Cross-entropy to the teacher's assignment to prototypes, and KoLeo.

    Source:
        Caron et al. 2021 (DINO), equations 1 to 3; Oquab et al. 2023 (DINOv2) for KoLeo.
    """

    def __init__(self, width: int, config: ClsConfig, prototypes: PrototypeConfig) -> None:
        super().__init__(width, config, prototypes.n_prototypes)
        self.prototypes = prototypes
        self._waiting: list[Tensor] = []

    def after_skip(self) -> None:
        """Its teacher vectors are not those of a good step."""
        self._waiting.clear()

    def forward(self, views: Tensor, teacher: Tensor, step_fraction: float) -> Terms:
        """The term and what to log; arguments as for `CodingRate.forward`."""
        config = self.prototypes
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

    @abstractmethod
    def targets(self, teacher: Tensor, step_fraction: float) -> Tensor:
        """Assignments [g b k] of the teacher's views [g b d]; each sums to 1."""

    def temperature(self, step_fraction: float) -> float:
        """The teacher's temperature after a share of the run."""
        start, end = self.prototypes.teacher_temperature
        return start + (end - start) * min(step_fraction / self.prototypes.warm_fraction, 1.0)


class Sinkhorn(Prototypes):
    """Assignments evened out over the batch and a queue, so that all prototypes are used.

    Source:
        Caron et al. 2020 (SwAV).
    """

    queue: Tensor
    n_queued: Tensor

    def __init__(self, width: int, config: ClsConfig) -> None:
        super().__init__(width, config, config.sinkhorn)
        self.config = config.sinkhorn
        self.register_buffer("queue", torch.zeros(self.config.n_queue, config.out))
        self.register_buffer("n_queued", torch.tensor(0))

    @torch.no_grad()
    def targets(self, teacher: Tensor, step_fraction: float) -> Tensor:
        """Assignments of the teacher's views: [g b k], evened out together with the queue."""
        unit = self.teacher(teacher)  # [g b out]
        own = unit.flatten(0, 1)
        everyone = gathered(own)
        if self.training:
            self._waiting.append(everyone)
        known = torch.cat([everyone, self.queue])
        # the whole queue with its empty rows masked: to count on the CPU, a GPU would have to stop
        number = torch.arange(len(known), device=known.device)
        assigned = sinkhorn_targets(
            self.teacher.logits(known),
            self.temperature(step_fraction),
            self.config.n_iterations,
            used=number < len(everyone) + self.n_queued,
        )
        return assigned[own_rows(len(own))].view(*unit.shape[:2], -1)

    def after_step(self) -> None:
        """Put the step's teacher vectors in front of the queue."""
        if self.config.n_queue and self._waiting:
            self.n_queued += sum(len(vectors) for vectors in self._waiting)
            self.n_queued.clamp_(max=self.config.n_queue)
            self.queue.copy_(torch.cat([*self._waiting, self.queue])[: self.config.n_queue])
        self._waiting.clear()


class Centring(Prototypes):
    """Assignments less their moving average, and sharpened: no prototype is everyone's.

    Source:
        Caron et al. 2021 (DINO), equation 4 and algorithm 1.
    """

    centre: Tensor

    def __init__(self, width: int, config: ClsConfig) -> None:
        super().__init__(width, config, config.centring)
        self.config = config.centring
        self.register_buffer("centre", torch.zeros(self.config.n_prototypes))

    @torch.no_grad()
    def targets(self, teacher: Tensor, step_fraction: float) -> Tensor:
        """Assignments of the teacher's views: [g b k], by the centre of the steps before."""
        logits = self.teacher.logits(self.teacher(teacher))  # [g b k]
        if self.training:
            self._waiting.append(mean_over_ranks(logits.mean(dim=(0, 1))))
        return centred_targets(logits, self.centre, self.temperature(step_fraction))

    def after_step(self) -> None:
        """Move the centre towards the mean of the step's logits."""
        if self._waiting:
            share = 1.0 - self.config.centre_momentum
            self.centre.lerp_(torch.stack(self._waiting).mean(dim=0), share)
        self._waiting.clear()


Distillation = CodingRate | Sinkhorn | Centring
OBJECTIVES: dict[str, type[Distillation]] = {
    "coding-rate": CodingRate,
    "sinkhorn": Sinkhorn,
    "centring": Centring,
}


def self_distillation(width: int, config: ClsConfig) -> Distillation:
    """The objective that a config names."""
    return OBJECTIVES[config.objective](width, config)
