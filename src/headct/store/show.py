"""A contact sheet of a store: the middle slices of its scans as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from headct.atomic import replacing
from headct.store.store import Store
from headct.volume.volume import Volume
from headct.volume.window import BRAIN, Window

HEIGHTS = (0.35, 0.5, 0.65, 0.8)
"""Which axial slices are shown, as shares of the grid from the bottom."""
TILE_MM_PER_PIXEL = 1.5
CAPTION_PIXELS = 14


def contact_sheet(
    store: Store, scan_ids: Sequence[str], path: Path, *, window: Window = BRAIN, columns: int = 2
) -> None:
    """Write a PNG with four axial slices per scan.

    Anterior is up and the patient's right is on the left, as radiologists look at it.

    Args:
        store: where the scans are.
        scan_ids: which scans, in this order.
        path: the PNG.
        window: grey levels.
        columns: scans side by side.
    """
    strips = [_strip(store[scan_id], scan_id, window) for scan_id in scan_ids]
    height, width = strips[0].size[1], strips[0].size[0]
    rows = math.ceil(len(strips) / columns)
    sheet = Image.new("L", (columns * (width + 4), rows * (height + 4)))
    for i, strip in enumerate(strips):
        sheet.paste(strip, (i % columns * (width + 4), i // columns * (height + 4)))
    with replacing(path) as aside:
        sheet.save(aside, format="PNG")


def radiological(hu_yx: NDArray[np.int16], window: Window) -> NDArray[np.uint8]:
    """One axial slice [y x] as grey values, anterior up, the patient's right on the left."""
    grey = (window.apply(hu_yx.astype(np.float32)) + 1) * 127.5
    return np.ascontiguousarray(grey[::-1, ::-1]).astype(np.uint8)


def _strip(volume: Volume, caption: str, window: Window) -> Image.Image:
    n_z, n_y, n_x = volume.shape_zyx
    _, mm_y, mm_x = volume.spacing_mm_zyx
    size = (round(n_x * mm_x / TILE_MM_PER_PIXEL), round(n_y * mm_y / TILE_MM_PER_PIXEL))
    strip = Image.new("L", (len(HEIGHTS) * size[0], size[1] + CAPTION_PIXELS))
    for i, height in enumerate(HEIGHTS):
        tile = Image.fromarray(radiological(volume.hu[round(height * (n_z - 1))], window))
        strip.paste(tile.resize(size, Image.Resampling.BILINEAR), (i * size[0], CAPTION_PIXELS))
    flags = f" ({', '.join(volume.flags)})" if volume.flags else ""
    ImageDraw.Draw(strip).text((2, 1), f"{caption}{flags}", fill=200)
    return strip
