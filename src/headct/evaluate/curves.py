"""Figures across a matrix of tasks: radar of findings, number of labels, scans of pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headct.evaluate.comparisons import MACRO
from headct.evaluate.figures import site_title
from headct.evaluate.results import Results, Row
from headct.evaluate.theme import (
    GRID,
    WIDTH_IN,
    colour,
    finding_name,
    method_name,
    new_figure,
    styled,
    to_svg,
)

FEWEST_SPOKES = 3
SHOWN_IN_RADAR = 5


def radar_figure(results: Results) -> Markup | None:
    """AUROC by finding on a radar per site; None with fewer than three findings.

    The best few methods are drawn, the others would hide them; a finding without enough positives
    at a site has no spoke there.
    """
    if len(results.findings) < FEWEST_SPOKES:
        return None
    methods = sorted(results.methods, key=lambda name: -_mean_macro(results, name))[:SHOWN_IN_RADAR]
    n_sites = len(results.sites)
    with styled():
        figure = Figure(figsize=(WIDTH_IN, 4.4 * math.ceil(n_sites / 2)), layout="constrained")
        for place, site in enumerate(results.sites):
            axis = figure.add_subplot(
                math.ceil(n_sites / 2), min(2, n_sites), place + 1, projection="polar"
            )
            _radar(axis, results, methods, site)
        handles = [
            Line2D([], [], color=colour(m), marker="o", label=method_name(m)) for m in methods
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return to_svg(figure, "AUROC by finding, a radar per site")


def _mean_macro(results: Results, method: str) -> float:
    found = [results.metric(method, s["site"], MACRO, "auroc").value for s in results.sites]
    values = [value for value in found if math.isfinite(value)]
    return sum(values) / len(values) if values else -1.0


def _radar(axis: Axes, results: Results, methods: Sequence[str], site: Row) -> None:
    findings = [name for name in results.findings if name not in site["too_few"]]
    angle = np.linspace(0, 2 * np.pi, len(findings), endpoint=False)
    lowest = 0.5
    for method in methods:
        values = [results.metric(method, site["site"], f, "auroc").value for f in findings]
        lowest = min([lowest, *(value for value in values if math.isfinite(value))])
        closed = [*values, *values[:1]]
        axis.plot([*angle, *angle[:1]], closed, color=colour(method), marker="o", markersize=3)
    axis.set_xticks(angle, [finding_name(name) for name in findings])
    axis.set_ylim(math.floor(lowest * 10) / 10, 1.0)
    axis.set_yticks([0.6, 0.8, 1.0])
    axis.set_title(site_title(site))


def label_number_figure(results: Results) -> Markup | None:
    """Macro AUROC against the number of labelled train scans; None where there is one number."""
    rows = _macro_rows(results)
    numbers = {row["n_train"] for row in rows}
    if len(numbers) < 2:
        return None
    return _curves(
        results, rows, lambda row: float(row["n_train"]), "labelled train scans", "labels"
    )


def pretraining_figure(results: Results) -> Markup | None:
    """Macro AUROC with all labels against the scans of pretraining; None without two numbers."""
    number_of = results.benchmark.get("pretrained_on", {})
    rows = [
        row | {"n_pretrained": number_of[encoder], "method": row["method"].rpartition(".")[2]}
        for row in _macro_rows(results)
        if (encoder := row["method"].rpartition(".")[0]) in number_of
        and row["n_train"] == _most_labels(results, row["method"])
    ]
    if len({row["n_pretrained"] for row in rows}) < 2:
        return None
    return _curves(
        results, rows, lambda row: float(row["n_pretrained"]), "scans of pretraining", "scale"
    )


def _macro_rows(results: Results) -> list[Row]:
    return [
        row
        for row in results.tables["label_efficiency"]
        if (row["finding"], row["metric"], row["k"]) == (MACRO, "auroc", 0)
        and math.isfinite(row["mean"])
    ]


def _most_labels(results: Results, method: str) -> int:
    return max(int(r["n_train"]) for r in _macro_rows(results) if r["method"] == method)


def _curves(
    results: Results, rows: list[Row], x_of: Callable[[Row], float], name: str, title: str
) -> Markup:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    scored = {row["site"] for row in rows}  # too few positives at a site leave it without a mean
    sites = [site for site in results.sites if site["site"] in scored]
    with styled():
        figure, axes = new_figure(3.2, len(sites))
        for axis, site in zip(axes, sites, strict=True):
            for method in methods:
                mine = [r for r in rows if (r["site"], r["method"]) == (site["site"], method)]
                mine.sort(key=x_of)
                x = [x_of(row) for row in mine]
                low, high = [row["lowest"] for row in mine], [row["highest"] for row in mine]
                axis.fill_between(x, low, high, color=colour(method), alpha=0.18, linewidth=0)
                mean = [row["mean"] for row in mine]
                axis.plot(x, mean, color=colour(method), marker="o", markersize=4.5, linewidth=1.6)
            axis.axhline(0.5, color=GRID, linewidth=0.8)
            axis.set_xscale("log")
            axis.set_title(site_title(site))
            axis.set_xlabel(name)
            axis.grid(axis="y")
        axes[0].set_ylabel("macro AUROC")
        handles = [
            Line2D([], [], color=colour(m), marker="o", label=method_name(m)) for m in methods
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return to_svg(figure, f"Macro AUROC by {title}")
