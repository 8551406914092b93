"""One look for all figures: a colour per method, text in the page's own colour, inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

METHOD_NAMES = {
    "finetune": "Fine-tuned encoder",
    "lora": "Encoder with LoRA",
    "probe": "Frozen encoder + probe",
    "attentive": "Frozen encoder + attentive probe",
    "knn": "Frozen encoder + kNN",
    "scratch-vit": "ViT from scratch",
    "scratch-cnn3d": "3D CNN from scratch",
    "scratch-resnet3d": "3D ResNet from scratch",
    "scratch-slices2d": "2D ResNet over slices from scratch",
    "probe-histogram": "HU histogram + probe",
    "probe-blocks": "Block means + probe",
    "probe-random-init": "Random encoder + probe",
    "probe-ct-fm": "CT-FM + probe",
    "probe-merlin": "Merlin + probe",
}
_COLOURS = {
    "finetune": "#2f7de1",
    "lora": "#4aa3c7",
    "probe": "#12a594",
    "attentive": "#7a6fdb",
    "knn": "#5b9e3d",
    "probe-random-init": "#9aa1ab",
    "probe-histogram": "#e8912d",
    "probe-blocks": "#b58a3c",
    "scratch-vit": "#d6457b",
    "scratch-cnn3d": "#8e5bd0",
}
_SPARE = (
    *("#2f7de1", "#e8912d", "#12a594", "#d6457b", "#7a6fdb", "#5b9e3d", "#c8553d", "#4aa3c7"),
    *("#b58a3c", "#8e5bd0", "#9aa1ab", "#a3a23a", "#d08bb0", "#7c5a48"),
)
_GIVEN: ContextVar[dict[str, str]] = ContextVar("colours of one report", default={})  # noqa: B039
WIDTH_IN = 9.6
INK, GRID = "#010203", "#010204"
"""Stand-ins that become the text colour of the page, so that figures follow light and dark."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


def method_name(method: str) -> str:
    """What people read for a method."""
    name = method.replace("fewshot", "probe", 1)
    return METHOD_NAMES.get(name, name.replace("-", " ").replace(".", ": "))


def method_rank(method: str) -> int:
    """Place of a method in figures and tables; unknown ones come last."""
    names = list(METHOD_NAMES)
    return names.index(method) if method in names else len(names)


def finding_name(finding: str) -> str:
    """What people read for a finding: short codes in capitals, the others as words."""
    words = finding.replace("_", " ")
    return words.upper() if len(finding) <= 3 else words[0].upper() + words[1:]


def colour(method: str) -> str:
    """Colour of a method, the same in every figure and table; few-shot has that of its probe."""
    name = method.replace("fewshot", "probe", 1)
    if name in _COLOURS:
        return _COLOURS[name]
    return _GIVEN.get().get(name) or _SPARE[sum(map(ord, name)) % len(_SPARE)]


@contextmanager
def distinct_colours(methods: Iterable[str]) -> Iterator[None]:
    """Inside it no two of these methods have one colour, as far as there are enough of them."""
    named = [name for name in dict.fromkeys(methods) if name not in _COLOURS]
    taken = {_COLOURS[name] for name in methods if name in _COLOURS}
    free = [one for one in _SPARE if one not in taken] or list(_SPARE)
    token = _GIVEN.set({name: free[n % len(free)] for n, name in enumerate(named)})
    try:
        yield
    finally:
        _GIVEN.reset(token)


def styled(**more: Any) -> AbstractContextManager[None]:
    """Inside it matplotlib draws in our look."""
    settings: Any = _STYLE | more
    return mpl.rc_context(settings)


def new_figure(
    height_in: float, columns: int, *, share_x: bool = False, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """An empty figure of panels in one row; no global state is touched."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharex=share_x, sharey=share_y)
    return figure, list(axes.ravel())


def to_svg(figure: Figure, title: str) -> Markup:
    """The figure as an inline SVG element; `title` is read out to people who cannot see it."""
    text = io.StringIO()
    with styled(**{"svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(GRID, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="(?:figure|axes|text|line2d|patch|xtick|ytick|matplotlib|legend)[^"]*"', "", svg
    )
    label = f'<svg role="img" aria-label="{escape(title, quote=True)}" '
    return Markup(svg.replace("<svg ", label, 1))  # noqa: S704 - our own drawing, labels escaped
