"""PretrainRecipe: everything that decides how a pre-training run goes."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from headct.config import Config, flat, ranges_rise
from headct.model.architecture import ENCODERS, EncoderConfig
from headct.objective.config import JointConfig
from headct.train.distribute import ComputeConfig
from headct.train.optim import OptimConfig
from headct.train.runtime import Precision
from headct.views.batch import ViewsConfig

NOT_LEARNED = {"name", "record", "compute"}
"""Keys that may change while a run goes on."""


class RecordConfig(Config):
    """What a run writes down; changes nothing in what it learns."""

    metrics_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=3, ge=1)
    """Last checkpoints that stay."""
    panel_every: int = Field(default=500, ge=0)
    """Steps between pictures of input, mask and reconstruction; 0 makes none."""
    probe_every: int = Field(default=500, ge=0)
    """Steps between probes on labelled scans, where labels were given; 0 makes none."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the lines of metrics.jsonl go besides."""

    def writes(self, step: int) -> bool:
        """Whether a line is due after a step, counted from 1."""
        return step == 1 or step % self.metrics_every == 0


class PretrainRecipe(Config):
    """A pre-training run, but for the store that it reads."""

    name: str = "pretrain"
    """What the run is called in the model card."""
    seed: int = Field(default=0, ge=0)
    """Start of every random number of the run."""
    steps: int = Field(gt=0)
    """Optimizer updates."""
    batch: int = Field(gt=0)
    """Scans per step on all ranks together."""
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches per step, where memory does not hold the batch."""
    precision: Precision = "auto"
    """bf16 or fp32 matrix products; auto takes bf16 where the hardware has it."""
    bundle_weights: Literal["student", "teacher"] = "teacher"
    """Which encoder the bundle holds."""
    max_unreadable_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of scans that may be unreadable before the run stops."""
    max_skipped_in_a_row: int = Field(default=5, ge=1)
    """Steps in a row with a loss that is not finite, before the run stops."""
    encoder: EncoderConfig
    """Architecture: a preset by name, or keys; with the key `preset` they change that preset."""
    views: Annotated[ViewsConfig, AfterValidator(ranges_rise)] = ViewsConfig()
    objective: JointConfig = JointConfig()
    optim: OptimConfig = OptimConfig()
    record: RecordConfig = RecordConfig()
    compute: ComputeConfig = ComputeConfig()

    @field_validator("encoder", mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        name = value["preset"]
        if name not in ENCODERS:
            near = difflib.get_close_matches(str(name), ENCODERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"no encoder preset {name!r}; there are {', '.join(ENCODERS)}{hint}")
        changes = {key: v for key, v in value.items() if key != "preset"}
        return ENCODERS[name].model_dump() | changes

    @model_validator(mode="after")
    def _positions_fit_the_crops(self) -> PretrainRecipe:
        has_table, crop = self.encoder.position_grid_zyx is not None, self.views.crop
        if crop.stretch and not has_table:
            raise ValueError(
                "views.crop.stretch leaves no mm for rotary positions: give"
                " encoder.position_grid_zyx, or switch it off"
            )
        if has_table and not crop.stretch and (crop.n_local or crop.global_fraction != (1.0, 1.0)):
            raise ValueError(
                "encoder.position_grid_zyx is for one grid, and the crops are of other sizes:"
                " set views.crop.stretch"
            )
        return self

    @model_validator(mode="after")
    def _terms_have_views(self) -> PretrainRecipe:
        terms, crop, masked = self.objective, self.views.crop, self.views.mask.ratio
        if terms.cls.weight > 0 and crop.n_global + crop.n_local < 2:
            raise ValueError(
                "objective.cls compares views of a scan, and there is one: raise"
                " views.crop.n_global or n_local, or set objective.cls.weight=0"
            )
        if terms.needs_decoder and masked[0] == 0:
            raise ValueError(
                "objective.mae and lat predict masked patches, and views.mask.ratio can be 0:"
                " raise it, or set their weights to 0"
            )
        if masked[1] > 0 and self.encoder.n_tokens < 2:
            raise ValueError(
                f"encoder.n_tokens={self.encoder.n_tokens} leaves nothing to mask: a view needs at"
                " least 2 patches, one to see and one to predict; raise encoder.n_tokens"
            )
        return self

    @model_validator(mode="after")
    def _scans_are_compared(self) -> PretrainRecipe:
        if self.batch == self.accumulate and self.fewest_scans > 1:
            raise ValueError(
                f"objective.cls by coding-rate keeps the scans of a micro-batch apart, and batch="
                f"{self.batch} with accumulate={self.accumulate} gives it one: raise batch, lower"
                " accumulate, or set objective.cls.weight=0"
            )
        return self

    @property
    def fewest_scans(self) -> int:
        """Scans that a micro-batch of all ranks together needs."""
        cls = self.objective.cls
        return 2 if cls.weight > 0 and cls.objective == "coding-rate" else 1

    @property
    def hash(self) -> str:
        """16 hex digits over all that decides what is learned."""
        values = self.model_dump(mode="json", exclude=NOT_LEARNED)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """All keys, as in --set, with their values."""
        return dict(flat(self.model_dump(mode="json")))

    def differences(self, other: PretrainRecipe) -> list[str]:
        """Keys, as in --set, in which another recipe would learn something else."""
        mine = dict(flat(self.model_dump(mode="json", exclude=NOT_LEARNED)))
        theirs = dict(flat(other.model_dump(mode="json", exclude=NOT_LEARNED)))
        return sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
