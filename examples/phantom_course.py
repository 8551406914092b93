"""Draw a picture of findings in the same patients on the day of the first scan and later.

python examples/phantom_course.py course.jpg
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

from headct.phantom.profile import load_preset, load_site
from headct.phantom.render import draw_scan, render_scan
from headct.volume.window import BRAIN

SHAPE = (84, 152, 124)
AFFINE = np.diag([1.5, 1.5, 1.5, 1.0])
AFFINE[:3, 3] = (-45, -115, -93)
DAYS = (0, 3, 7, 30, 90)
PATIENTS = {"sdh": 13, "edh": 8, "iph": 8, "infarct": 15, "mass": 1}


def main(path: str) -> None:
    preset, site = load_preset("canonical"), load_site("hospital-a")
    figure, axes = plt.subplots(len(PATIENTS), 1, figsize=(9, 11), facecolor="black")
    for (finding, patient), axis in zip(PATIENTS.items(), axes, strict=True):
        scans = [
            render_scan(
                draw_scan(preset, site, 0, patient, findings={finding: 0.9}, days=day),
                SHAPE,
                AFFINE,
            )
            for day in DAYS
        ]
        plane = int(scans[0].masks[finding].sum(axis=(1, 2)).argmax())
        strip = [BRAIN.apply(scan.hu[plane])[::-1, ::-1] for scan in scans]
        axis.imshow(np.concatenate(strip, axis=1), cmap="gray", vmin=-1, vmax=1)
        volumes = ", ".join(f"{s.truth['volume_ml'].get(finding, 0):.0f}" for s in scans)
        title = f"{finding} on days {', '.join(map(str, DAYS))}: {volumes} ml"
        axis.set_title(title, color="white", loc="left", fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80} if path.endswith("jpg") else None)


if __name__ == "__main__":
    main(sys.argv[1])
