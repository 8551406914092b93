"""One student pass, several terms: what a pretraining run minimises.

    visible patches of masked globals ──student──┬── decoder ── voxels of masked patches     L_pix
    local crops ───────────────────────student──┐└── decoder ── features of masked patches   L_lat
                                                └── CLS of all student views                 L_cls
    all kept patches of globals ── teacher (EMA) ── features, CLS: the targets of L_lat, L_cls
                                 ── anchor (early teacher) ── likeness of patches     L_gram

`dino`, `mae` and `joint` are recipes: a term whose weight is 0 is not built, one whose weight is
still 0 in its ramp is not computed. All draws come from torch's default generator, so a caller who
seeds it per step gets the same step again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from headct.errors import UsageError
from headct.model.architecture import EncoderConfig
from headct.model.encoder import ViT3D
from headct.model.heads import MaeDecoder
from headct.model.tokens import InputWindows, Tokens, gather_patches
from headct.objective.config import JointConfig
from headct.objective.dino import Distillation, self_distillation
from headct.objective.gram import GramAnchor, gram_loss
from headct.objective.guards import cls_std, effective_rank
from headct.objective.mae import (
    Pull,
    draw_masked,
    latent_loss,
    pixel_loss,
    pull_of_patches,
    require_channel_weights,
)
from headct.objective.windows import draw_windows
from headct.views.batch import ViewBatch
from headct.volume.volume import Zyx

Scalars = dict[str, Tensor]


@dataclass(frozen=True)
class _Globals:
    """Global views of a batch, those of one scan next to each other: n = b * g rows.

    Attributes:
        hu: [n z y x].
        keep: [n t] patches that are computed.
        masked: [n t] bool, those of them that the student does not see.
        spacing_mm_zyx: voxel size.
        n_masked: how many, in every row.
        n_views: g.
        target_hu: [n z y x] what L_pix asks for.
    """

    hu: Tensor
    keep: Tensor
    masked: Tensor
    n_masked: int
    spacing_mm_zyx: Zyx
    n_views: int
    target_hu: Tensor

    @cached_property
    def visible(self) -> Tensor:
        """[n t_visible] patches that the student sees."""
        return self.of_visible(self.keep)

    def of_visible(self, values: Tensor) -> Tensor:
        """Values [n t ...] at the patches that the student sees: [n t_visible ...]."""
        # no boolean index: a GPU would have to count before the step can go on
        first = self.masked.byte().argsort(dim=1, stable=True)
        place = first[:, : self.masked.shape[1] - self.n_masked]
        rows = torch.arange(len(place), device=place.device)[:, None]
        return values[rows, place]


class JointObjective(nn.Module):
    """Student, teacher, heads and decoder; turns views into losses.

    The teacher and what belongs to it never get a gradient; they change in `after_step` only.

    Raises:
        UsageError: the config contradicts the encoder's.
    """

    def __init__(self, config: JointConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        require_channel_weights(config.mae, len(encoder.windows))
        self.config, self.encoder_config = config, encoder
        self.student = ViT3D(encoder)
        self.decoder: MaeDecoder | None = None
        self.teacher: ViT3D | None = None
        self.distillation: Distillation | None = None
        self.anchor: GramAnchor | None = None
        self.pull: Pull = pull_of_patches
        self._step_fraction = 0.0
        if config.needs_decoder:
            sizes = config.decoder
            self.decoder = MaeDecoder(encoder, sizes.width, sizes.depth, sizes.heads)
        if config.needs_teacher:
            self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        if config.cls.weight > 0:
            self.distillation = self_distillation(encoder.width, config.cls)
        if config.gram.weight > 0 and self.teacher is not None:
            self.anchor = GramAnchor(self.teacher, config.gram)

    def forward(
        self, views: ViewBatch, step_fraction: float, *, with_rank: bool = True
    ) -> dict[str, Tensor]:
        """`losses`, under the name by which wrappers for several devices call it."""
        return self.losses(views, step_fraction, with_rank=with_rank)

    def losses(
        self, views: ViewBatch, step_fraction: float, *, with_rank: bool = True
    ) -> dict[str, Tensor]:
        """The loss of a batch and everything to log about it.

        Args:
            views: every row of `masked` has the same number of True.
            step_fraction: share of the run that is done, by steps.
            with_rank: False leaves out the effective rank, for which a GPU has to stop.

        Returns:
            Scalars: `loss`, with a gradient; `mae_loss`, `lat_loss`, `cls_loss`, `gram_loss` of the
            terms that are on, unweighted; and guards (docs/explanation/objectives).
        """
        self._step_fraction = step_fraction
        on = self._weights_at(step_fraction)
        large = _Globals(
            views.globals_hu.flatten(0, 1),
            views.keep.flatten(0, 1),
            views.masked.flatten(0, 1),
            views.n_masked,
            views.spacing_mm_zyx,
            views.keep.shape[1],
            (views.globals_hu if views.clean_hu is None else views.clean_hu).flatten(0, 1),
        )
        windows = self._draw_windows(len(large.hu))
        student = self.student.forward_hu(large.hu, large.spacing_mm_zyx, large.visible, windows)
        teacher = None
        if on.keys() & {"lat", "cls"}:
            teacher = self._teacher_tokens(large, windows if self.config.jitter_teacher else None)
        terms, seen = self._masked_terms(on, large, student, teacher)
        if "cls" in on and teacher is not None:
            terms["cls"], more = self._cls_term(views, student, teacher, step_fraction)
            seen |= more
        if "gram" in on and self.anchor is not None:
            terms["gram"] = self._gram_term(self.anchor, large, student)
        loss = torch.stack([on[name] * term for name, term in terms.items()]).sum()
        one_view = student.cls.detach()[:: large.n_views]
        seen["cls_std"] = cls_std(one_view)
        if with_rank:
            seen["effective_rank"] = effective_rank(one_view)
        seen |= {f"{name}_loss": term for name, term in terms.items()}
        return {"loss": loss, **{name: value.detach() for name, value in seen.items()}}

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + rest * student."""
        if self.teacher is not None:
            follow(self.teacher, self.student, momentum)
        if self.distillation is not None:
            follow(self.distillation.teacher, self.distillation.student, momentum)
            self.distillation.after_step()
        if self.anchor is not None and self.teacher is not None:
            self.anchor.follow(self.teacher, self._step_fraction)

    def after_skip(self) -> None:
        """Instead of `after_step`, where a step is not applied."""
        if self.distillation is not None:
            self.distillation.after_skip()

    def bundle_encoder(self) -> ViT3D:
        """The encoder to ship: the teacher where there is one, else the student."""
        return self.student if self.teacher is None else self.teacher

    def train(self, mode: bool = True) -> JointObjective:
        """As in torch, but the teacher always stays in evaluation mode: no jitter, no drop path."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _weights_at(self, step_fraction: float) -> dict[str, float]:
        config = self.config
        terms = {"mae": config.mae, "lat": config.lat, "cls": config.cls, "gram": config.gram}
        weights = {name: term.weight_at(step_fraction) for name, term in terms.items()}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def _draw_windows(self, n: int) -> InputWindows | None:
        """Windows of n views of the student: jittered in training, else None."""
        if not self.training:
            return None
        config, windows = self.config, self.encoder_config.windows
        return draw_windows(windows, config.window_jitter, config.window_contrast, n, self._device)

    @property
    def _device(self) -> torch.device:
        return self.student.cls.device

    @torch.no_grad()
    def _teacher_tokens(self, large: _Globals, windows: InputWindows | None) -> Tokens:
        assert self.teacher is not None
        last = self.config.lat.last_blocks or (3 if self.encoder_config.depth >= 12 else 1)
        return self.teacher.forward_hu(large.hu, large.spacing_mm_zyx, large.keep, windows, last)

    def _masked_terms(
        self, on: dict[str, float], large: _Globals, student: Tokens, teacher: Tokens | None
    ) -> tuple[Scalars, Scalars]:
        """L_pix and L_lat where they are on, and what to log."""
        if self.decoder is None or not on.keys() & {"mae", "lat"}:
            return {}, {}
        if not large.n_masked:
            raise UsageError(
                "mae and lat predict masked patches, and the views mask none",
                remedy="give the views a mask ratio, or set the weights of mae and lat to 0",
            )
        places = draw_masked(large.masked, self.config.mae.n_asked(large.n_masked))
        asked = large.keep.gather(1, places)
        asked_mm = self.student.centres_mm(asked, large.hu.shape[1:], large.spacing_mm_zyx)
        hidden, own = self.decoder(student, asked_mm)
        terms: Scalars = {}
        seen: Scalars = {}
        if "mae" in on:
            terms["mae"], seen = self._pixel_term(self.decoder, large, (hidden, own), asked)
        if "lat" in on and teacher is not None:
            at = places[..., None].expand(-1, -1, self.encoder_config.width)
            features = [block.gather(1, at) for block in teacher.blocks]
            terms["lat"] = latent_loss(self.decoder.to_features(hidden), features)
        return terms, seen

    def _pixel_term(
        self, decoder: MaeDecoder, large: _Globals, hidden: tuple[Tensor, Tensor], asked: Tensor
    ) -> tuple[Tensor, Scalars]:
        """L_pix of the asked patches, and of a share of the visible ones where it is wanted.

        Args:
            decoder: its outputs become voxels.
            large: views.
            hidden: what the decoder has at the asked and at the visible patches.
            asked: [n q] numbers of the asked patches.
        """
        at_asked, at_visible = hidden
        n_visible = round(self.config.mae.visible_fraction * at_visible.shape[1])
        if n_visible:
            score = torch.rand(at_visible.shape[:2], device=asked.device)
            chosen = score.topk(n_visible, dim=1).indices
            asked = torch.cat([asked, large.visible.gather(1, chosen)], dim=1)
            rows = torch.arange(len(chosen), device=asked.device)[:, None]
            at_asked = torch.cat([at_asked, at_visible[rows, chosen]], dim=1)
        voxels_hu = gather_patches(large.target_hu, self.encoder_config.patch_voxels_zyx, asked)
        windows = self.encoder_config.windows
        guessed = decoder.to_voxels(at_asked)
        return pixel_loss(guessed, voxels_hu, windows, self.config.mae, self.pull)

    def _gram_term(self, anchor: GramAnchor, large: _Globals, student: Tokens) -> Tensor:
        """L_gram of the patches that the student sees, among all that the anchor sees."""
        with torch.no_grad():
            whole = anchor.encoder.forward_hu(large.hu, large.spacing_mm_zyx, large.keep)
        return gram_loss(student.patches, large.of_visible(whole.patches))

    def _cls_term(
        self, views: ViewBatch, student: Tokens, teacher: Tokens, step_fraction: float
    ) -> tuple[Tensor, Scalars]:
        """L_cls; the local views are encoded here, where alone they are needed."""
        assert self.distillation is not None
        n_scans, n_local = views.locals_hu.shape[:2]
        cls = [_by_view(student.cls, n_scans)]
        if n_local:
            hu = views.locals_hu.flatten(0, 1)
            windows = self._draw_windows(len(hu))
            local = self.student.forward_hu(hu, views.spacing_mm_zyx, None, windows)
            cls.append(_by_view(local.cls, n_scans))
        with torch.autocast(student.cls.device.type, enabled=False):
            ours, target = torch.cat(cls).float(), _by_view(teacher.cls, n_scans).float()
            term, seen = self.distillation(ours, target, step_fraction)
        return term, seen


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every weight of the teacher: momentum * teacher + (1 - momentum) * student."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)


def _by_view(cls: Tensor, n_scans: int) -> Tensor:
    """CLS of views, those of one scan next to each other [b*v d] -> [v b d]."""
    return torch.unflatten(cls, 0, (n_scans, -1)).transpose(0, 1)
