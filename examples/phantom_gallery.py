"""Draw a picture of one synthetic head with each finding in turn.

python examples/phantom_gallery.py gallery.jpg
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

from headct.phantom.profile import DRAWN_FINDINGS, load_preset, load_site
from headct.phantom.render import draw_scan, render_scan
from headct.volume.window import BONE, BRAIN

SHAPE = (126, 152, 124)
AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])
AFFINE[:3, 3] = (-80, -115, -93)
PATIENT = 8
HEIGHTS_MM = (-45, -8, 12, 30, 48)


def main(path: str) -> None:
    preset, site = load_preset("canonical"), load_site("hospital-a")
    names = ["normal", *DRAWN_FINDINGS]
    figure, axes = plt.subplots(6, 2, figsize=(14, 12.5), facecolor="black")
    for name, axis in zip(names, axes.T.ravel(), strict=True):
        findings = {} if name == "normal" else {name: 0.9}
        scan = render_scan(draw_scan(preset, site, 0, PATIENT, findings=findings), SHAPE, AFFINE)
        planes = [int((mm + 80) / 1.5) for mm in HEIGHTS_MM]
        if name in scan.masks:
            planes[0] = int(scan.masks[name].sum(axis=(1, 2)).argmax())
        window = BONE if name == "fracture" else BRAIN
        strip = np.concatenate([window.apply(scan.hu[z])[::-1, ::-1] for z in planes], axis=1)
        axis.imshow(strip, cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name.replace("_", " "), color="white", loc="left", fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80} if path.endswith("jpg") else None)


if __name__ == "__main__":
    main(sys.argv[1])
