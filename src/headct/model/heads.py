"""What sits on the encoder while it is pretrained: projection head and reconstruction decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headct.model.architecture import EncoderConfig
from headct.model.blocks import Block, init_linear
from headct.model.position import prefixed_rotations, rope_periods_mm, sines
from headct.model.tokens import Tokens


class ProjectionHead(nn.Module):
    """DINO's head: three-layer MLP to a unit vector, compared with prototypes where there are any.

    Args:
        width: of the encoder.
        hidden: of the MLP.
        out: length of the unit vector.
        n_prototypes: unit vectors to compare with; 0 for none.

    Source:
        Caron et al. 2021, section 3.1; the prototypes' length is fixed to one.
    """

    def __init__(self, width: int, hidden: int, out: int, n_prototypes: int = 0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, out),
        )
        self.apply(init_linear)
        self.prototypes = None
        if n_prototypes:
            self.prototypes = nn.Parameter(torch.empty(n_prototypes, out))
            nn.init.normal_(self.prototypes, std=0.02)

    def forward(self, cls: Tensor) -> Tensor:
        """[... d] -> unit vectors [... out], float32."""
        return F.normalize(self.mlp(cls).float(), dim=-1)

    def logits(self, unit: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosine of unit vectors [... out] with every prototype: [... k].

        Args:
            unit: from `forward`.
            frozen: give the prototypes no gradient.
        """
        if self.prototypes is None:
            raise ValueError("this head has no prototypes")
        prototypes = F.normalize(self.prototypes, dim=-1)
        return unit @ (prototypes.detach() if frozen else prototypes).T


class MaeDecoder(nn.Module):
    """Visible tokens and the places of hidden patches -> voxels and features of those patches.

    Small on purpose: it is thrown away, and at the size of the published one it costs more than
    the encoder. Places are added to its tokens as well as rotated: with rotation alone all asked
    places start out alike, and it takes hundreds of steps to tell them apart (decision 0032). With
    an encoder of learned positions they are only added, as in the published decoder.

    Source:
        He et al. 2022, section 3; only a share of the hidden patches is asked for.
    """

    periods_mm: Tensor

    def __init__(self, encoder: EncoderConfig, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width, self.periods_range_mm = width, encoder.rope_periods_mm
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, encoder.mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_voxels = nn.Linear(width, len(encoder.windows) * encoder.patch_voxels)
        self.to_features = nn.Linear(width, encoder.width)
        self.is_rotary = encoder.position_grid_zyx is None
        periods = rope_periods_mm(width // heads // 2, *encoder.rope_periods_mm)
        self.register_buffer("periods_mm", periods, persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.apply(init_linear)

    def forward(self, visible: Tokens, asked_mm: Tensor) -> tuple[Tensor, Tensor]:
        """What is at the asked places, and at those that are visible.

        Args:
            visible: of the student.
            asked_mm: [b q 3] centres of hidden patches, mm from the centre of the view.

        Returns:
            [b q w] and [b t w], for `to_voxels` and `to_features`.
        """
        n, n_asked = asked_mm.shape[:2]
        seen = torch.cat([visible.cls[:, None], visible.registers, visible.patches], dim=1)
        x = torch.cat([self.embed(seen), self.mask_token.expand(n, n_asked, -1)], dim=1)
        centre_mm = torch.cat([visible.centre_mm, asked_mm], dim=1)
        n_prefix = seen.shape[1] - visible.patches.shape[1]
        x = x + F.pad(sines(centre_mm, self.width, *self.periods_range_mm), (0, 0, n_prefix, 0))
        rotation = (
            prefixed_rotations(centre_mm, self.periods_mm, n_prefix) if self.is_rotary else None
        )
        for block in self.blocks:
            x = block(x, rotation)
        x = self.norm(x[:, n_prefix:])
        return x[:, -n_asked:], x[:, :-n_asked]
