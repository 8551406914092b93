"""What L_cls is: which objective, its head, and the settings of each objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from headct.config import Config, Positive, Range
from headct.objective.mae import TermConfig

KOLEO_FROM_SCANS = 16
"""Scans of a rank's micro-batch from which on KoLeo is computed."""


class CodingRateConfig(Config):
    """Spread by coding rate."""

    gamma: float = Field(default=0.005, gt=0.0)
    """Weight of the coding rate against the distance between views, at the start."""
    eps: float = Field(default=0.5, gt=0.0)
    """Distortion of the code; larger looks at coarser structure."""
    distance_band: Range = (0.05, 0.25)
    """Mean cosine distance between views that gamma is steered to stay in."""
    steer: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share by which gamma changes after a step outside the band; 0 keeps gamma."""


class PrototypeConfig(Config):
    """What objectives with prototypes share."""

    n_prototypes: int = Field(default=1024, gt=1)
    """65,536 for a global batch >= 1,024; 8,192 at 256; 1,024 at 64."""
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """At the start, and from `warm_fraction` of the run on."""
    warm_fraction: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the run over which the teacher's temperature rises."""
    student_temperature: float = Field(default=0.1, gt=0.0)
    frozen_fraction: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of the run in which prototypes get no gradient."""
    koleo: float = Field(default=0.1, ge=0.0)
    """Weight of KoLeo on CLS; left out where a rank's micro-batch has under 16 scans, and said."""


class SinkhornConfig(PrototypeConfig):
    """Prototypes with evened-out teacher targets."""

    n_iterations: int = Field(default=3, gt=0)
    """Sinkhorn-Knopp iterations."""
    n_queue: int = Field(default=2048, ge=0)
    """Teacher vectors of earlier steps that take part in evening out; for global batches < 256."""


class CentringConfig(PrototypeConfig):
    """Prototypes with centred and sharpened teacher targets, as DINO was published."""

    n_prototypes: int = Field(default=65_536, gt=1)
    centre_momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of the moving average of the teacher's logits that is subtracted from them."""
    koleo: float = Field(default=0.0, ge=0.0)


SECTIONS = {"coding-rate": "coding_rate", "sinkhorn": "sinkhorn", "centring": "centring"}
"""Objectives, and the section of `ClsConfig` that each reads."""


class ClsConfig(TermConfig):
    """L_cls."""

    weight: float = Field(default=1.0, ge=0.0)
    ramp: tuple[float, float] = (0.1, 0.3)
    objective: Literal["coding-rate", "sinkhorn", "centring"] = "coding-rate"
    hidden: int = Field(default=2048, gt=0)
    """Width of the projection head."""
    out: int = Field(default=256, gt=0)
    """Length of its unit vector."""
    coding_rate: CodingRateConfig = CodingRateConfig()
    sinkhorn: SinkhornConfig = SinkhornConfig()
    centring: CentringConfig = CentringConfig()

    @model_validator(mode="after")
    def _only_its_own_settings(self) -> ClsConfig:
        own = SECTIONS[self.objective]
        for name, section in SECTIONS.items():
            asked = self._asked(section)
            if self.weight > 0 and section != own and asked:
                raise ValueError(
                    f"objective is {self.objective}, which never reads {section}.{asked[0]}: set"
                    f" objective.cls.objective={name}, or leave that section out with"
                    f' --set "objective.cls.{section}={{}}"'
                )
        return self

    @property
    def prototypes(self) -> PrototypeConfig | None:
        """Settings of the prototypes that are trained; None where there are none."""
        own = getattr(self, SECTIONS[self.objective])
        return own if self.weight > 0 and isinstance(own, PrototypeConfig) else None

    @property
    def has_prototypes(self) -> bool:
        """Whether the recipe asks for prototypes."""
        asked = self._asked("sinkhorn") or self._asked("centring")
        return bool(asked) or self.objective != "coding-rate"

    def _asked(self, section: str) -> list[str]:
        """Keys of a section that somebody asked for.

        A section with all keys at their defaults is none: a resolved recipe writes it so.
        """
        given, usual = getattr(self, section), ClsConfig.model_fields[section].default
        changed = [k for k in type(given).model_fields if getattr(given, k) != getattr(usual, k)]
        is_partly = given.model_fields_set != type(given).model_fields.keys()
        return changed or (sorted(given.model_fields_set) if is_partly else [])
