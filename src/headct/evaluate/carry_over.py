"""Trained here, tested there: macro AUROC at home (ID) and elsewhere (OOD), by training site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headct.evaluate.comparisons import MACRO
from headct.evaluate.results import UNDEFINED, Estimate, Results, Row

NOWHERE = "not one of these sites"


@dataclass(frozen=True)
class CarryOver:
    """One method, trained at one site (or several together).

    Attributes:
        method: its name.
        trained_at: where its train patients are from.
        at: macro AUROC by test site, and whether the site is at home.
    """

    method: str
    trained_at: str
    at: dict[str, tuple[Estimate, bool]]

    @property
    def inside(self) -> float:
        """Mean over the sites at home; NaN where there is none."""
        return self._mean(internal=True)

    @property
    def outside(self) -> float:
        """Mean over all other sites; NaN where there is none."""
        return self._mean(internal=False)

    def _mean(self, *, internal: bool) -> float:
        found = [e.value for e, home in self.at.values() if home == internal and e.defined]
        return sum(found) / len(found) if found else float("nan")


def carry_over_rows(results: Results) -> list[Row]:
    """The macro AUROC of every method at every site, as plain values."""
    home = [site["site"] for site in results.sites if site["internal"]]
    rows = []
    for method in results.methods:
        for site in results.sites:
            found = results.metric(method, site["site"], MACRO, "auroc")
            if found.defined:
                values = {name: getattr(found, name) for name in ("value", "lo", "hi")}
                about = {"method": method, "trained_at": ", ".join(home) or NOWHERE}
                where = {"site": site["site"], "internal": site["internal"]}
                rows.append(about | where | {k: v if v == v else None for k, v in values.items()})
    return rows


def carry_over(results: Results) -> list[CarryOver]:
    """Of a benchmark all training sites, of another evaluation the one it has."""
    rows = results.benchmark.get("carry_over") or carry_over_rows(results)
    methods = dict.fromkeys(row["method"] for row in rows)
    places = dict.fromkeys(row["trained_at"] for row in rows)
    found = [
        CarryOver(method, place, _by_site(rows, method, place))
        for method in methods
        for place in places
    ]
    return [one for one in found if one.at]


def _by_site(rows: Sequence[Row], method: str, place: str) -> dict[str, tuple[Estimate, bool]]:
    return {
        row["site"]: (_estimate(row), row["internal"])
        for row in rows
        if (row["method"], row["trained_at"]) == (method, place)
    }


def _estimate(row: Row) -> Estimate:
    value, lo, hi = (UNDEFINED.value if row[k] is None else row[k] for k in ("value", "lo", "hi"))
    return Estimate(value, lo, hi)
