"""Nets for findings: an encoder under the probe's readout and head, trainable end to end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from headct.adapt.logistic import Logistic
from headct.adapt.readout import N_CELLS, N_COMPONENTS, Readout
from headct.model.encoder import ViT3D
from headct.model.tokens import Tokens, select_head_tokens
from headct.volume.volume import Zyx

VECTORS = ("cls", "mean", "max", "region")
HEAD_PREFIX = "head."


class ReadoutHead(nn.Module):
    """The probe as a module: the same readout and weights, so it starts where the probe ended.

    Args:
        readout: fitted on frozen features, or `blank_readout` from scratch.
        head: weights [f d] and biases [f] on the standardised vector.
    """

    mean: Tensor
    scale: Tensor
    cell_mean: Tensor

    def __init__(self, readout: Readout, head: Logistic) -> None:
        super().__init__()
        for name in ("mean", "scale", "cell_mean"):
            self.register_buffer(name, _tensor(readout.arrays[name]))
        self.components = nn.Parameter(_tensor(readout.arrays["components"]))
        self.weight = nn.Parameter(_tensor(head.weight))
        self.bias = nn.Parameter(_tensor(head.bias))

    def forward(self, tokens: Tokens) -> Tensor:
        """Logits [b f]."""
        patches = tokens.patches.float()
        cells = (tokens.regions().float() - self.cell_mean) @ self.components  # [b cells c]
        vectors = [tokens.cls.float(), patches.mean(1), patches.amax(1), cells.flatten(1)]
        x = (torch.cat(vectors, 1) - self.mean) / self.scale
        return x @ self.weight.T + self.bias

    def export(self) -> tuple[Readout, Logistic]:
        """The readout and head as the probe has them."""
        names = ("mean", "scale", "cell_mean", "components")
        arrays = {name: _numpy(getattr(self, name)) for name in names}
        head = Logistic(_numpy(self.weight).astype(float), _numpy(self.bias).astype(float))
        return Readout(VECTORS, arrays), head


def _tensor(values: np.ndarray) -> Tensor:
    """A copy in C order: a checkpoint restores that order, and the optimizer goes by memory."""
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def blank_readout(width: int, seed: int) -> Readout:
    """A readout that nothing was fitted for: features as they are, random orthogonal components."""
    rng = np.random.default_rng([seed, width])
    components, _ = np.linalg.qr(rng.standard_normal((width, min(N_COMPONENTS, width))))
    n = 3 * width + N_CELLS * components.shape[1]
    arrays = {
        "mean": np.zeros(n),
        "scale": np.ones(n),
        "cell_mean": np.zeros((N_CELLS, width)),
        "components": components,
    }
    return Readout(VECTORS, {name: v.astype(np.float32) for name, v in arrays.items()})


class EncoderNet(nn.Module):
    """An encoder under a ReadoutHead.

    Args:
        encoder: trained or new.
        head: on its tokens.
        spacing_mm_zyx: voxel size of the volumes.
        token_fraction: share of a scan's tokens that is computed in training, drawn anew each time.
    """

    def __init__(
        self,
        encoder: ViT3D,
        head: ReadoutHead,
        spacing_mm_zyx: Zyx,
        token_fraction: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.spacing_mm_zyx = spacing_mm_zyx
        self.token_fraction = token_fraction

    def forward(self, hu: Tensor) -> Tensor:
        """HU [b z y x] -> logits [b f]."""
        config = self.encoder.config
        keep = select_head_tokens(hu, config.n_tokens, config.patch_voxels_zyx)
        if self.training and self.token_fraction < 1:
            keep = _drop_tokens(keep, self.token_fraction)
        logits: Tensor = self.head(self.encoder.forward_hu(hu, self.spacing_mm_zyx, keep))
        return logits


def _drop_tokens(keep: Tensor, fraction: float) -> Tensor:
    n = max(1, round(fraction * keep.shape[1]))
    chosen = torch.rand(keep.shape, device=keep.device).argsort(1)[:, :n]
    return keep.gather(1, chosen.sort(1).values)


def layer_scale_of(depth: int, decay: float, head_factor: float) -> Callable[[str], float]:
    """Learning-rate factor by parameter name: of the head, and falling block by block from the top.

    Args:
        depth: blocks of the encoder.
        decay: factor per block; 1 for none.
        head_factor: of the head.
    """

    def factor(name: str) -> float:
        if name.startswith(HEAD_PREFIX):
            return head_factor
        if ".blocks." in name:
            block = int(name.split(".blocks.")[1].split(".")[0])
            return decay ** (depth - block)
        return 1.0 if ".norm." in name else decay ** (depth + 1)

    return factor
