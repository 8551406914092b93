"""Bundle: a trained encoder as a folder that is all one needs to use it.

    BUNDLE/
      encoder.safetensors   weights, float32
      bundle.json           architecture with its windows, preprocessing, hash, provenance
      README.md             model card

The hash is over the weights, the architecture and the preprocessing: everything that an embedding
depends on, and nothing else, so that the same encoder has the same hash wherever it was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headct.atomic import replacing_folder, write_json, write_text
from headct.errors import CheckpointError, UsageError
from headct.model.architecture import EncoderConfig
from headct.model.card import model_card
from headct.model.embed import Bundle as Bundle
from headct.model.embed import Embedding as Embedding
from headct.model.encoder import ViT3D
from headct.volume.preprocessing import Preprocessing

FORMAT = 1
WEIGHTS, DESCRIPTION, CARD = "encoder.safetensors", "bundle.json", "README.md"


def save_bundle(
    path: str | Path,
    encoder: ViT3D,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any] | None = None,
    *,
    replace: bool = True,
) -> str:
    """Write a bundle whole or not at all.

    Args:
        path: the folder to make.
        encoder: the weights and their architecture.
        preprocessing: how the scans that it was trained on were made.
        provenance: where the weights come from (recipe, seed, steps, scans, commit, ...): plain
            JSON values without identifiers or paths; listed in the model card.
        replace: whether a bundle of another hash at `path` gives way.

    Returns:
        The hash of the bundle.

    Raises:
        UsageError: something else is at `path`, or another bundle and `replace` is False.
    """
    path = Path(path)
    is_there = (path / DESCRIPTION).is_file()
    if path.exists() and not is_there and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path.name!r} is there and is no bundle", remedy="give another folder")
    provenance = dict(provenance or {})
    weights = {name: w.detach().float().cpu() for name, w in encoder.state_dict().items()}
    with replacing_folder(path) as folder:
        save_file({k: w.contiguous() for k, w in weights.items()}, folder / WEIGHTS)
        sha256 = _sha256(folder / WEIGHTS)
        identity = _identity(encoder.config, preprocessing, sha256)
        if is_there and not replace and _read_description(path).get("hash") != identity:
            raise UsageError(
                f"{path.name!r} holds another bundle", remedy="give another folder, or remove it"
            )
        description = {
            "format": FORMAT,
            "hash": identity,
            "weights_sha256": sha256,
            "encoder": encoder.config.model_dump(mode="json"),
            "preprocessing": preprocessing.model_dump(mode="json", exclude={"hash"}),
            "preprocessing_hash": preprocessing.hash,
            "provenance": provenance,
        }
        write_json(folder / DESCRIPTION, description)
        n_parameters = sum(w.numel() for w in weights.values())
        card = model_card(encoder.config, preprocessing, identity, n_parameters, provenance)
        write_text(folder / CARD, card)
    return identity


def is_bundle(path: Path) -> bool:
    """Whether a folder has all files of a bundle; `load_bundle` looks into them."""
    return all((path / name).is_file() for name in (WEIGHTS, DESCRIPTION, CARD))


def load_bundle(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Read a bundle, checking every byte that matters.

    Args:
        path: the folder.
        device: where the encoder goes.
        dtype: float32, or bfloat16 to compute the matrix products in bfloat16: faster where the
            hardware has it, and an embedding then differs in the third digit.

    Raises:
        CheckpointError: no bundle there, damaged, of a newer format, or weights that do not fit the
            architecture (the message lists the keys).
    """
    path = Path(path)
    description = _read_description(path)
    try:
        config = EncoderConfig.model_validate(description["encoder"])
        preprocessing = Preprocessing.model_validate(description["preprocessing"])
        said, sha256 = str(description["hash"]), str(description["weights_sha256"])
    except (KeyError, ValidationError) as error:
        raise _damaged(f"{DESCRIPTION} lacks or misstates a field") from error
    if _identity(config, preprocessing, sha256) != said:
        raise _damaged(f"{DESCRIPTION} was changed after it was written")
    weights = _read_weights(path, sha256)
    encoder = ViT3D(config)
    load_strictly(encoder, weights, "the bundle")
    return Bundle(
        encoder=encoder.to(device).eval().requires_grad_(False),
        preprocessing=preprocessing,
        hash=said,
        provenance=dict(description.get("provenance", {})),
        dtype=dtype,
    )


def load_strictly(
    module: torch.nn.Module,
    weights: Mapping[str, Tensor],
    name: str,
    remedy: str = "use the recipe that the weights were trained with",
) -> None:
    """Put weights into a module; a partly matching set is an error that lists the keys.

    Args:
        module: changed only where everything fits.
        weights: by name.
        name: what the weights are called in the message, e.g. "the bundle".
        remedy: what to do where they do not fit.

    Raises:
        CheckpointError: missing, unexpected or differently shaped weights.
    """
    own = module.state_dict()
    faults = [f"missing {key}" for key in own.keys() - weights.keys()]
    faults += [f"unexpected {key}" for key in weights.keys() - own.keys()]
    faults += [
        f"{key} is {list(weights[key].shape)}, not {list(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if weights[key].shape != own[key].shape
    ]
    if faults:
        shown = sorted(faults)[:20]
        more = [f"and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
        raise CheckpointError(
            f"{name} belongs to another architecture:\n  " + "\n  ".join(shown + more),
            remedy=remedy,
        )
    module.load_state_dict(weights)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no bundle at {path.name!r}",
            remedy="give the folder `bundle` of a run of `headct pretrain`",
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(f"{DESCRIPTION} cannot be read") from error
    if not isinstance(description, dict) or "format" not in description:
        raise _damaged(f"{DESCRIPTION} is not a bundle's")
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"the bundle has format {description['format']}, this headct reads {FORMAT}",
            remedy="use the version of headct that wrote it",
        )
    return description


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        if _sha256(path / WEIGHTS) != sha256:
            raise _damaged(f"{WEIGHTS} is not the file that was written")
        return load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(f"{WEIGHTS} cannot be read") from error


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(
        f"the bundle is damaged: {what}", remedy="copy it again, or export it from its run again"
    )


def _identity(encoder: EncoderConfig, preprocessing: Preprocessing, weights_sha256: str) -> str:
    values = {
        "encoder": encoder.model_dump(mode="json"),
        "preprocessing": preprocessing.hash,
        "weights": weights_sha256,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
