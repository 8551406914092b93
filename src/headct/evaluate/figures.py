"""Figures of an evaluation: macro, forest, differences, few labels, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headct.evaluate.comparisons import MACRO
from headct.evaluate.results import Estimate, Results, Row
from headct.evaluate.tables import POOLED
from headct.evaluate.theme import (
    GRID,
    INK,
    colour,
    finding_name,
    method_name,
    new_figure,
    styled,
    to_svg,
)

SHOWN_IN_CALIBRATION = 4
FEW_CASES = 10
"""Bins with fewer are drawn pale."""


def site_title(site: Row) -> str:
    """Name of a site and what it is to the methods."""
    role = "internal" if site["internal"] else "external"
    return f"{site['site'] or 'site not named'} ({role})"


def macro_figure(results: Results) -> Markup:
    """Macro AUROC of every method with its interval, a panel per site."""
    methods = results.methods
    with styled():
        figure, axes = new_figure(0.75 + 0.32 * len(methods), len(results.sites), share_x=True)
        for axis, site in zip(axes, results.sites, strict=True):
            for y, method in enumerate(methods):
                found = results.metric(method, site["site"], MACRO, "auroc")
                _point(axis, found, y, method, size=7)
                if found.defined:
                    axis.annotate(
                        f"{found.value:.3f}",
                        (found.hi if found.hi == found.hi else found.value, y),
                        xytext=(5, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=8,
                    )
            _area_axis(axis, site_title(site), "macro AUROC")
            axis.margins(x=0.12)
            axis.set_yticks(range(len(methods)), [method_name(name) for name in methods])
            axis.set_ylim(len(methods) - 0.4, -0.6)
    return to_svg(figure, "Macro AUROC of every method, internal and external")


def forest_figure(results: Results, metric: str = "auroc") -> Markup:
    """AUROC of every method for every finding, a panel per site."""
    methods, findings = results.methods, results.findings
    step = 1.0 / (len(methods) + 1.5)
    height = 1.0 + len(findings) * (0.16 + 0.115 * len(methods))
    with styled():
        figure, axes = new_figure(height, len(results.sites), share_x=True)
        for axis, site in zip(axes, results.sites, strict=True):
            for f, finding in enumerate(findings):
                if f % 2:
                    axis.axhspan(f - 0.5, f + 0.5, color=GRID, alpha=0.05, linewidth=0)
                for m, method in enumerate(methods):
                    y = f + (m - (len(methods) - 1) / 2) * step
                    _point(axis, results.metric(method, site["site"], finding, metric), y, method)
            _area_axis(axis, site_title(site), "AUROC")
            axis.set_yticks(range(len(findings)), _finding_labels(results))
            axis.set_ylim(len(findings) - 0.5, -0.5)
            axis.tick_params(axis="y", length=0)
        _legend(figure, methods)
    return to_svg(figure, "AUROC per finding and method, internal and external")


def _finding_labels(results: Results) -> list[str]:
    counts = [
        " / ".join(str(site["findings"][finding]["n_pos"]) for site in results.sites)
        for finding in results.findings
    ]
    return [
        f"{finding_name(name)}\n{count} positive"
        for name, count in zip(results.findings, counts, strict=True)
    ]


def difference_figure(results: Results, pairs: Sequence[tuple[str, str]]) -> Markup:
    """Paired macro differences with their intervals, a panel per site."""
    with styled():
        figure, axes = new_figure(0.8 + 0.3 * len(pairs), len(results.sites), share_x=True)
        for axis, site in zip(axes, results.sites, strict=True):
            for y, (a, b) in enumerate(pairs):
                row = results.difference(a, b, site["site"])
                if row:
                    found = Estimate(row["difference"], row["lo"], row["hi"])
                    _point(axis, found, y, a, size=6)
            axis.axvline(0, color=INK, linewidth=0.8)
            axis.set_title(site_title(site))
            axis.set_xlabel("difference in macro AUROC")
            axis.grid(axis="x")
            axis.set_yticks(
                range(len(pairs)), [f"{method_name(a)}  −  {method_name(b)}" for a, b in pairs]
            )
            axis.set_ylim(len(pairs) - 0.4, -0.6)
    return to_svg(figure, "Paired differences in macro AUROC between methods")


def label_figure(results: Results) -> Markup | None:
    """Macro AUROC against the number of labels, with the spread over draws; None without draws."""
    rows = [
        row
        for row in results.tables["label_efficiency"]
        if row["finding"] == MACRO and row["metric"] == "auroc" and math.isfinite(row["mean"])
    ]
    if not any(row["k"] for row in rows):
        return None
    with styled():
        figure, axes = new_figure(3.1, len(results.sites))
        for axis, site in zip(axes, results.sites, strict=True):
            here = [row for row in rows if row["site"] == site["site"]]
            _label_curves(axis, [row for row in here if row["k"]])
            for row in (row for row in here if not row["k"]):
                axis.axhline(
                    row["mean"], color=colour(row["method"]), linewidth=1.1, linestyle=(0, (4, 3))
                )
            axis.axhline(0.5, color=GRID, linewidth=0.8)
            axis.set_title(site_title(site))
            axis.set_xlabel("K: scans with and without, per finding")
            axis.set_xticks(sorted({row["k"] for row in here if row["k"]}))
            axis.grid(axis="y")
        axes[0].set_ylabel("macro AUROC")
        _legend(figure, list(dict.fromkeys(row["method"] for row in rows if row["k"])))
    return to_svg(figure, "Macro AUROC by number of labelled scans")


def _label_curves(axis: Axes, rows: list[Row]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["k"])
        k, mean = [row["k"] for row in mine], [row["mean"] for row in mine]
        low, high = [row["lowest"] for row in mine], [row["highest"] for row in mine]
        axis.fill_between(k, low, high, color=colour(method), alpha=0.18, linewidth=0)
        axis.plot(k, mean, color=colour(method), marker="o", markersize=4.5, linewidth=1.6)


def calibration_figure(results: Results) -> Markup:
    """Score against observed share over all findings, a panel per site."""
    methods = results.methods[:SHOWN_IN_CALIBRATION]
    with styled():
        figure, axes = new_figure(3.9, len(results.sites))
        for axis, site in zip(axes, results.sites, strict=True):
            axis.plot([0, 1], [0, 1], color=GRID, linewidth=0.8)
            for method in methods:
                points = [
                    row
                    for row in results.tables["reliability"]
                    if (row["method"], row["site"], row["finding"])
                    == (method, site["site"], POOLED)
                ]
                _reliability(axis, points, method)
            axis.set(xlim=(0, 1), ylim=(0, 1), title=site_title(site), aspect="equal")
            axis.set_xlabel("mean score")
            axis.grid()
        axes[0].set_ylabel("share of scans with the finding")
        _legend(figure, methods)
    return to_svg(figure, "Calibration: scores against observed shares")


def _reliability(axis: Axes, points: list[Row], method: str) -> None:
    many = [row for row in points if row["n"] >= FEW_CASES]
    for row in points:
        at, shade = row["mean_score"], 1.0 if row["n"] >= FEW_CASES else 0.25
        axis.plot([at, at], [row["lo"], row["hi"]], color=colour(method), alpha=0.4 * shade, lw=1)
        axis.plot(at, row["observed"], "o", color=colour(method), markersize=4, alpha=shade)
    x, y = [row["mean_score"] for row in many], [row["observed"] for row in many]
    axis.plot(x, y, color=colour(method), linewidth=1.5)


def _point(axis: Axes, found: Estimate, y: float, method: str, size: float = 4.5) -> None:
    if not found.defined:
        return
    shade = 1.0 if found.enough else 0.35
    axis.plot([found.lo, found.hi], [y, y], color=colour(method), linewidth=1.6, alpha=shade * 0.75)
    axis.plot(found.value, y, "o", color=colour(method), markersize=size, alpha=shade)


def _area_axis(axis: Axes, title: str, label: str) -> None:
    axis.axvline(0.5, color=GRID, linewidth=0.9, linestyle=(0, (2, 2)))
    axis.set_title(title)
    axis.set_xlabel(label)
    axis.grid(axis="x")


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=colour(name), marker="o", markersize=5, linewidth=1.6)
        for name in methods
    ]
    figure.legend(
        handles,
        [method_name(name) for name in methods],
        loc="outside lower center",
        ncols=min(len(methods), 4),
        fontsize=8.5,
    )
