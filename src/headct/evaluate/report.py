"""EVAL/ (and what led to it) -> one self-contained HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from headct import __version__
from headct.atomic import write_text
from headct.errors import UsageError
from headct.evaluate import curves, figures
from headct.evaluate.carry_over import carry_over
from headct.evaluate.checklist import as_markdown, checklist
from headct.evaluate.comparisons import MACRO
from headct.evaluate.explain import read_localisation
from headct.evaluate.gallery import RULE, Panel, gallery
from headct.evaluate.headline import HISTOGRAM, answers, between, lead_method, opening, signed
from headct.evaluate.history import Account, Pretraining, ingest_account, pretraining
from headct.evaluate.localisation_figure import MAPS, localisation_figure
from headct.evaluate.metrics import OPERATING, RULE_OUT
from headct.evaluate.results import Estimate, Results, Row, read_results
from headct.evaluate.theme import colour, distinct_colours, finding_name, method_name
from headct.store.store import open_store

TEMPLATE = "template.html.jinja"
TITLE = "<title>Head CT detectors: evaluation report</title>"
"""By which a page is known as a report, of this and of earlier versions."""
HEAD_BYTES = 4096
FEW_REFUSED = 60


@dataclass(frozen=True)
class Sources:
    """What a report may draw on besides the evaluation; each is left out where not given.

    Attributes:
        store: its account of ingest; with `task` also scans to look at.
        task: whose attention is shown.
        bundle: the encoder of a probe task.
        run: a pretraining run.
        maps: folder of `headct explain` with masks: how well maps lie on lesions.
    """

    store: Path | None = None
    task: Path | None = None
    bundle: Path | None = None
    run: Path | None = None
    maps: Path | None = None


def write_report(
    evaluation: Path, out: Path, sources: Sources, checklist_to: Path | None = None
) -> None:
    """Write the report, and where wanted its checklist alone, as Markdown to be completed.

    Raises:
        UsageError: no evaluation, a folder that is not what it should be, `out` is something else
            than a report, or `checklist_to` has been completed.
        MismatchError: the store, task and bundle do not belong together.
    """
    _require_replaceable(out)
    if checklist_to is not None and checklist_to.resolve() == out.resolve():
        raise UsageError("--out and --checklist name one file", remedy="give two names")
    results = read_results(evaluation)
    account = ingest_account(sources.store) if sources.store else None
    run = pretraining(sources.run) if sources.run else None
    if checklist_to is not None:
        to_complete = as_markdown(checklist(results, account, run))
        _require_untouched(checklist_to, to_complete)
    panels: list[Panel] = []
    if sources.store and sources.task:
        panels = gallery(open_store(sources.store), sources.task, sources.bundle)
    located = read_localisation(sources.maps) if sources.maps else []
    write_text(out, render(results, account, run, panels, located))
    if checklist_to is not None:
        write_text(checklist_to, to_complete)


def _require_replaceable(out: Path) -> None:
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder", remedy=f"e.g. --out {out / 'report.html'}")
    if not out.exists():
        return
    with out.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.strip() and TITLE.encode() not in head:
        raise UsageError(
            f"--out {out} is there, and is no report of headct",
            remedy="give another --out, or move that file",
        )


def _require_untouched(checklist_to: Path, text: str) -> None:
    if checklist_to.is_dir():
        raise UsageError(f"--checklist {checklist_to} is a folder", remedy="name a file in it")
    if checklist_to.exists() and checklist_to.read_bytes() not in (b"", text.encode()):
        raise UsageError(
            f"--checklist {checklist_to} is there with another text, maybe completed by hand",
            remedy="give another --checklist, or move that file",
        )


def render(
    results: Results,
    account: Account | None = None,
    run: Pretraining | None = None,
    panels: Sequence[Panel] = (),
    located: Sequence[Row] = (),
) -> str:
    """The page as text."""
    lead = lead_method(results)
    carried = carry_over(results)
    sites = dict.fromkeys(site for row in carried for site in row.at)
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= {
        "area": area,
        "signed": signed,
        "p": p_text,
        "span": span,
        "method": method_name,
    }
    page.filters |= {"finding": finding_name, "colour": colour, "percent": percent}
    text = resources.files("headct.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8")
    with distinct_colours(_all_methods(results)):
        return page.from_string(text).render(
            results=results,
            lead=lead,
            opening=opening(results, lead),
            answers=answers(results, lead),
            cards=_cards(results, lead),
            pairs=_pairs(results),
            carried=carried if len(sites) > 1 else [],
            carried_sites=list(sites),
            figures=_figures(results),
            operating=operating(results, lead),
            few=_few(results),
            ece=_calibration(results),
            subgroups=_subgroups(results, lead),
            account=account,
            few_refused=FEW_REFUSED,
            run=run,
            panels=panels,
            panel_rule=RULE,
            located=located,
            map_names={name: shown for name, (shown, _) in MAPS.items()},
            localisation=localisation_figure(located) if located else None,
            checklist=checklist(results, account, run),
            provenance=_provenance(results),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            macro=MACRO,
            between=between,
            site_title=figures.site_title,
        )


def _all_methods(results: Results) -> list[str]:
    """Those of all labels first, then those of few."""
    few = [row["method"] for row in results.tables["label_efficiency"]]
    return list(dict.fromkeys([*results.methods, *few]))


def _cards(results: Results, lead: str) -> list[Row]:
    """The few numbers on top: macro AUROC of the lead method, and less its floors."""
    cards: list[Row] = []
    for site in results.sites:
        found = results.metric(lead, site["site"], MACRO, "auroc")
        cards.append({"label": f"macro AUROC, {figures.site_title(site)}", "found": found})
    for floor in results.methods:
        if floor in ("scratch-vit", HISTOGRAM):
            for site in results.sites:
                row = results.difference(lead, floor, site["site"])
                if row and floor != lead:
                    found = Estimate(row["difference"], row["lo"], row["hi"])
                    where = "internal" if site["internal"] else "external"
                    label = f"minus {method_name(floor)}, {where}"
                    cards.append({"label": label, "found": found, "difference": True})
    return cards


def _pairs(results: Results) -> list[tuple[str, str]]:
    return [(a, b) for a, b in results.summary["compared"]]


def _figures(results: Results) -> Row:
    pairs = _pairs(results)
    return {
        "macro": figures.macro_figure(results),
        "forest": figures.forest_figure(results),
        "differences": figures.difference_figure(results, pairs) if pairs else None,
        "labels": figures.label_figure(results),
        "radar": curves.radar_figure(results),
        "numbers": curves.label_number_figure(results),
        "scale": curves.pretraining_figure(results),
        "calibration": figures.calibration_figure(results),
    }


def operating(results: Results, lead: str) -> list[Row]:
    """Sensitivity and the rest at the two fixed thresholds, per finding and site.

    The thresholds are those of the first seed of the labels that the metrics are of.
    """
    of = next(row for row in results.tables["metrics"] if row["method"] == lead)
    about = min(
        (a for a in results.summary["methods"] if _is_of(a, of)), key=lambda about: about["seed"]
    )
    return [
        {
            "finding": finding,
            "threshold": about["thresholds"].get(finding),
            "rule_out": about["rule_out_thresholds"].get(finding),
            "sites": [
                {
                    name: results.metric(lead, site["site"], finding, name)
                    for name in (*OPERATING, *RULE_OUT)
                }
                for site in results.sites
            ],
        }
        for finding in results.findings
    ]


def _is_of(about: Row, row: Row) -> bool:
    """Whether a task is of the method and labels of a row of the table metrics."""
    same = (about["method"], about["n_train"]) == (row["method"], row["n_train"])
    return same and (row["k"] in about["k"] if row["k"] else not about["k"])


def _calibration(results: Results) -> list[Row]:
    """Mean calibration error over the findings, before and after scaling, by method and site."""
    rows = results.tables["calibration"]
    return [
        {"method": method, "site": site["site"]}
        | {name: _mean([row[name] for row in found]) for name in ("ece_raw", "ece")}
        for method in results.methods
        for site in results.sites
        if (found := [r for r in rows if (r["method"], r["site"]) == (method, site["site"])])
    ]


def _subgroups(results: Results, lead: str) -> list[Row]:
    """Macro AUROC of the lead method in each group that has findings enough to count."""
    return [
        row
        for row in results.tables["subgroups"]
        if (row["method"], row["finding"], row["metric"]) == (lead, MACRO, "auroc")
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _few(results: Results) -> list[Row]:
    rows = results.tables["label_efficiency"]
    return [
        row for row in rows if row["finding"] == MACRO and row["metric"] == "auroc" and row["k"]
    ]


def _provenance(results: Results) -> list[tuple[str, Any]]:
    run = results.run
    packages = ", ".join(f"{name} {version}" for name, version in run["packages"].items())
    return [
        ("headct", f"{run['headct']}, commit {run['git_commit'] or 'not in a checkout'}"),
        ("Evaluation", f"{run['started']}, {results.summary['cpu_s']} CPU-s"),
        ("Options", json.dumps(results.summary["config"])),
        ("Python and system", f"{run['python']}, {run['system']}"),
        ("Packages", packages),
    ]


def area(value: float) -> str:
    """A number between 0 and 1 with three digits; a dash where there is none."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def span(interval: tuple[float, float]) -> str:
    """An interval in numbers; one dash where there is none."""
    lo, hi = interval
    return f"{lo:.3f}–{hi:.3f}" if math.isfinite(lo) and math.isfinite(hi) else "–"


def percent(value: float) -> str:
    """A share as percent."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else "–"


def p_text(value: float) -> str:
    """A p value, not smaller than one can mean."""
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
