"""How often maps point at the lesion, and how far they overlap with it, beside chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from headct.evaluate.theme import GRID, INK, finding_name, new_figure, styled, to_svg

Row = dict[str, Any]
MAPS = {
    "attention": ("attention of CLS", "#12a594"),
    "gradient": ("attention weighted by the score", "#2f7de1"),
    "query": ("attention of the query", "#d6457b"),
}
PANELS = (("hit", "peak within 10 mm of the lesion"), ("dice", "Dice of the top percentile"))


def localisation_figure(summary: Sequence[Row]) -> Markup:
    """Two panels, pointing game and Dice; a line per finding, a point per map, a tick for chance.

    Args:
        summary: rows of `summarise`.
    """
    findings = list(dict.fromkeys(row["finding"] for row in summary))
    maps = [name for name in MAPS if any(row["map"] == name for row in summary)]
    with styled():
        figure, axes = new_figure(1.1 + 0.42 * len(findings), len(PANELS))
        for axis, (what, title) in zip(axes, PANELS, strict=True):
            for row in summary:
                beside = (maps.index(row["map"]) - (len(maps) - 1) / 2) * 0.24
                _draw(axis, row, what, findings.index(row["finding"]) + beside)
            axis.set_title(title)
            axis.set_xlim(left=0)
            axis.grid(axis="x")
            names = [f"{finding_name(name)} ({_count(summary, name)})" for name in findings]
            axis.set_yticks(range(len(findings)), names)
            axis.set_ylim(len(findings) - 0.5, -0.5)
            axis.tick_params(axis="y", length=0)
        handles = [
            Line2D([], [], color=MAPS[m][1], marker="o", linestyle="", label=MAPS[m][0])
            for m in maps
        ]
        handles.append(Line2D([], [], color=INK, marker="|", linestyle="", label="chance"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return to_svg(figure, "How often maps point at the lesion and overlap with it, beside chance")


def _draw(axis: Axes, row: Row, what: str, y: float) -> None:
    colour = MAPS[row["map"]][1]
    low, high = row.get(f"{what}_lo", math.nan), row.get(f"{what}_hi", math.nan)
    axis.plot([low, high], [y, y], color=colour, linewidth=1.4)
    axis.plot([row[what]], [y], color=colour, marker="o", markersize=5)
    axis.plot([row[f"chance_{what}"]], [y], color=GRID, marker="|", markersize=9, linestyle="")


def _count(summary: Sequence[Row], finding: str) -> int:
    return max(int(row["n"]) for row in summary if row["finding"] == finding)


def as_file(svg: Markup) -> str:
    """An inline SVG as a file of its own."""
    name = 'xmlns="http://www.w3.org/2000/svg"'
    return svg if name in svg else svg.replace("<svg ", f"<svg {name} ", 1)
