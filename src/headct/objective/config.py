"""What pre-training minimises: the terms, their weights, and the decoder that two of them share."""

from __future__ import annotations

from pydantic import Field, model_validator

from headct.config import Config, NotNegative
from headct.objective.dino_config import ClsConfig
from headct.objective.gram import GramConfig
from headct.objective.mae import LatConfig, MaeConfig
from headct.objective.windows import WindowContrast


class DecoderConfig(Config):
    """The decoder that `mae` and `lat` share."""

    width: int = Field(default=256, gt=0)
    depth: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> DecoderConfig:
        if self.width % self.heads or self.width // self.heads % 2 or self.width // self.heads < 6:
            raise ValueError(f"width {self.width} does not give {self.heads} even heads >= 6")
        return self


class JointConfig(Config):
    """What is minimised; terms with weight 0 are off."""

    mae: MaeConfig = MaeConfig()
    lat: LatConfig = LatConfig()
    cls: ClsConfig = ClsConfig()
    gram: GramConfig = GramConfig()
    decoder: DecoderConfig = DecoderConfig()
    window_jitter: tuple[NotNegative, NotNegative] = (0.05, 0.1)
    """Input windows in training: largest shift of the level as a share of the width, and largest
    logarithm of the change of the width. Targets are never jittered."""
    window_contrast: WindowContrast = WindowContrast()
    jitter_teacher: bool = False
    """Give the teacher the windows that the student's large crops have, as DINO was published."""

    @model_validator(mode="after")
    def _something_is_on(self) -> JointConfig:
        terms, faults = (self.mae, self.lat, self.cls), []
        if not any(term.weight for term in terms):
            faults.append("mae, lat and cls all have weight 0: nothing to learn")
        elif not any(term.weight_at(0.0) for term in terms):
            faults.append(
                "mae, lat and cls all have weight 0 at the first step: nothing to learn there;"
                " give one of them ramp=[0,0]"
            )
        if self.cls.weight == 0 and self.cls.has_prototypes:
            faults.append(
                "prototypes without a CLS term: cls.weight is 0; raise it, or leave the rest out"
                ' with --set "objective.cls={weight=0}"'
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any term has targets from a teacher."""
        return self.lat.weight > 0 or self.cls.weight > 0 or self.gram.weight > 0

    @property
    def needs_decoder(self) -> bool:
        """Whether any term is about masked patches."""
        return self.mae.weight > 0 or self.lat.weight > 0
