"""The model card that lies in every bundle as README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headct.model.architecture import EncoderConfig
from headct.volume.preprocessing import Preprocessing

_TEXT = """\
# A head CT encoder

**Research use only.** Not a medical device, not validated for diagnosis. Its vectors are inputs to
a task head; they say nothing about a patient by themselves.

| | |
|---|---|
{rows}

## Use

```python
import headct

embedding = headct.load_bundle("BUNDLE").embed("folder or file of one head CT series")
embedding.cls, embedding.mean, embedding.max
```

Input is prepared by the bundle itself, as the table says. Volumes and stores that were made with
another preprocessing are refused.

## How it was trained

{training}

## Limits

- It has seen what its training scans show: other ages, scanners, protocols and findings are
  untested until you test them. Check every task on scans of your own site, by patient.
- Weights are data too. A network keeps traces of what it was trained on, and whether a scan was
  in the training set can be guessed better than by chance from an encoder and its decoder. The
  decoder is not in this folder. Membership was {membership}.
  Train on defaced volumes, and treat the weights under the same agreement as the scans where that
  is in doubt.
"""


def model_card(
    encoder: EncoderConfig,
    preprocessing: Preprocessing,
    identity: str,
    n_parameters: int,
    provenance: Mapping[str, Any],
) -> str:
    """The text of a bundle's README.md.

    Args:
        encoder: architecture.
        preprocessing: how its input is made.
        identity: hash of the bundle.
        n_parameters: weights in all.
        provenance: plain values; `membership` is the outcome of a membership test, the rest is
            listed as it is.
    """
    z, y, x = preprocessing.shape_zyx
    patch = f"{_by(encoder.patch_mm_zyx)} mm"
    size = f" of {_by(preprocessing.spacing_mm_zyx)} mm"
    if preprocessing.stretched is not None:
        patch, size = f"{_by(encoder.patch_voxels_zyx)} voxels", ", the head stretched to fill them"
    facts = {
        "identity": f"`{identity}`",
        "architecture": f"3D ViT, width {encoder.width}, depth {encoder.depth}, "
        f"{encoder.heads} heads, {n_parameters / 1e6:.1f} M parameters",
        "patch": f"{patch} (z, y, x), {encoder.n_tokens} per scan",
        "input": f"{z} x {y} x {x} voxels{size}, preprocessing `{preprocessing.hash}`",
        "windows": ", ".join(
            f"{w.name} (level {w.level_hu:g}, width {w.width_hu:g} HU)" for w in encoder.windows
        ),
    }
    training = {k: v for k, v in provenance.items() if k != "membership"}
    return _TEXT.format(
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        training="\n".join(_lines(training)) or "Nothing was recorded.",
        membership=provenance.get("membership", "not tested for this bundle"),
    )


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in values.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [f"{indent}- {label}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {label}: {value}")
    return lines
