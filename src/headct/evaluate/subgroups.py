"""Does a method work for everyone? The same estimates within groups of patients and scanners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headct.errors import MismatchError
from headct.evaluate.collect import SiteScores

Row = dict[str, Any]
UNKNOWN = "unknown"
AGE_BANDS = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 200))
"""Years, from and below."""
THICKNESS_BANDS = ((0, 1.5), (1.5, 3.5), (3.5, 100))
"""Millimetres, from and below."""


def _sex(row: Row) -> str:
    return {"F": "female", "M": "male", "O": "other"}.get(row["sex"] or "", UNKNOWN)


def _age(row: Row) -> str:
    return _band(row["age_years"], AGE_BANDS, "years")


def _thickness(row: Row) -> str:
    return _band(row["slice_thickness_mm"], THICKNESS_BANDS, "mm")


def _scanner(row: Row) -> str:
    names = [name for name in (row["manufacturer"], row["model"]) if name]
    return " ".join(names) or UNKNOWN


def _kernel(row: Row) -> str:
    return row["kernel"] or UNKNOWN


DIMENSIONS: dict[str, Callable[[Row], str]] = {
    "sex": _sex,
    "age": _age,
    "scanner": _scanner,
    "kernel": _kernel,
    "thickness": _thickness,
}


def _band(value: float | None, bands: Sequence[tuple[float, float]], unit: str) -> str:
    if value is None:
        return UNKNOWN
    for low, high in bands:
        if low <= value < high:
            if low == bands[0][0]:
                return f"below {high:g} {unit}"
            if high == bands[-1][1]:
                return f"{low:g} {unit} and more"
            return f"{low:g} to {high:g} {unit}"
    return UNKNOWN


def groups_of(
    site: SiteScores, manifest: pa.Table, dimensions: Sequence[str] = tuple(DIMENSIONS)
) -> Iterator[tuple[str, str, SiteScores]]:
    """The scans of a site by sex, age, scanner, kernel and slice thickness.

    A dimension in which all scans are alike is left out.

    Args:
        site: test scans and scores.
        manifest: of the store that the scans are in.
        dimensions: which.

    Yields:
        Dimension, name of the group, its part of the site.

    Raises:
        MismatchError: scans that the store does not have.
    """
    wanted = sorted({"scan_id", "sex", "age_years", "manufacturer", "model", "kernel"})
    table = manifest.select([*wanted, "slice_thickness_mm"]).to_pylist()
    row_of = {row["scan_id"]: row for row in table}
    absent = [scan_id for scan_id in site.scan_ids if scan_id not in row_of]
    if absent:
        raise MismatchError(
            f"the store lacks {len(absent)} of the {len(site.scan_ids)} test scans of {site.site}",
            remedy="give the store that the tasks were made on",
        )
    for dimension in dimensions:
        names = np.array([DIMENSIONS[dimension](row_of[scan_id]) for scan_id in site.scan_ids])
        levels = np.unique(names)
        if len(levels) > 1:
            for level in levels:
                yield dimension, str(level), part_of(site, names == level)


def part_of(site: SiteScores, mask: NDArray[np.bool_]) -> SiteScores:
    """Some scans of a site."""
    _, patient_of = np.unique(site.patient_of[mask], return_inverse=True)
    return replace(
        site,
        scan_ids=tuple(np.array(site.scan_ids, dtype=object)[mask].tolist()),
        patient_of=patient_of.astype(np.int64),
        y_true=site.y_true[mask],
        scores={run: scores[mask] for run, scores in site.scores.items()},
    )
