"""HU windows: what a radiologist looks through and what the encoder sees."""

from __future__ import annotations

from typing import Any

from headct.config import Config, Positive


class Window(Config):
    """A display window; works on numpy arrays and on tensors of any device."""

    name: str
    level_hu: float
    width_hu: Positive

    def apply(self, hu: Any) -> Any:
        """HU -> [-1, 1], saturated outside the window."""
        scaled = (hu - self.level_hu) * (2.0 / self.width_hu)
        return scaled.clip(-1.0, 1.0)


BRAIN = Window(name="brain", level_hu=40, width_hu=80)
BLOOD = Window(name="blood", level_hu=80, width_hu=200)
BONE = Window(name="bone", level_hu=600, width_hu=2800)
STROKE = Window(name="stroke", level_hu=35, width_hu=40)
WINDOWS = (BRAIN, BLOOD, BONE)
