"""EVAL/ read back: the numbers of an evaluation, by method, site, finding and metric."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headct.errors import UsageError
from headct.evaluate.comparisons import MACRO
from headct.evaluate.evaluation import EVALUATION, FORMAT_VERSION, TABLES
from headct.evaluate.theme import method_rank

Row = dict[str, Any]
BENCHMARK = "benchmark.json"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and what it rests on; NaN where it is not defined."""

    value: float
    lo: float
    hi: float
    n: int = 0
    n_pos: int | None = None
    enough: bool = True

    @property
    def defined(self) -> bool:
        """Whether there is a number."""
        return math.isfinite(self.value)


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Results:
    """An evaluation: evaluation.json, run.json and the tidy tables as rows.

    `benchmark` is what `headct benchmark` says about the encoders, where the tasks came from it.
    """

    summary: dict[str, Any]
    run: dict[str, Any]
    tables: dict[str, list[Row]]
    benchmark: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> list[Row]:
        """Sites with their counts, internal ones first."""
        return list(self.summary["sites"])

    @property
    def findings(self) -> list[str]:
        """Names of the findings."""
        return list(self.summary["findings"])

    @cached_property
    def methods(self) -> list[str]:
        """Methods that saw all labels, pretrained ones first."""
        names = dict.fromkeys(row["method"] for row in self.tables["metrics"])
        return sorted(names, key=lambda name: (name not in self.pretrained, method_rank(name)))

    @cached_property
    def pretrained(self) -> set[str]:
        """Methods that start from a pretrained encoder."""
        return {about["method"] for about in self.summary["methods"] if about["pretrained"]}

    def metric(self, method: str, site: str, finding: str, metric: str) -> Estimate:
        """One number of the table metrics."""
        return self._metrics.get((method, site, finding, metric), UNDEFINED)

    def difference(self, a: str, b: str, site: str, finding: str = MACRO) -> Row | None:
        """The AUROC of `a` less that of `b`; None where they were not compared."""
        return self._differences.get((a, b, site, finding))

    @cached_property
    def _metrics(self) -> dict[tuple[str, ...], Estimate]:
        names = ("value", "lo", "hi", "n", "n_pos", "enough")
        return {
            (row["method"], row["site"], row["finding"], row["metric"]): Estimate(
                **{name: row[name] for name in names}
            )
            for row in self.tables["metrics"]
        }

    @cached_property
    def _differences(self) -> dict[tuple[str, ...], Row]:
        return {
            (row["method_a"], row["method_b"], row["site"], row["finding"]): row
            for row in self.tables["comparisons"]
            if row["metric"] == "auroc"
        }


def read_results(folder: Path) -> Results:
    """Read an evaluation, or the one that a benchmark made.

    Raises:
        UsageError: no evaluation there, several, damaged, or of another format version.
    """
    folder = _evaluation_of(folder)
    try:
        summary = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        tables = {
            name: pq.read_table(folder / "tables" / f"{name}.parquet").to_pylist()
            for name in TABLES
        }
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder.name!r} is not a whole evaluation", remedy="make one with `headct evaluate`"
        ) from error
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise UsageError(
            f"the evaluation {folder.name!r} is damaged", remedy="make it again"
        ) from error
    if summary.get("format_version") != FORMAT_VERSION:
        raise UsageError("the evaluation is of another version", remedy="make it again")
    about = folder / BENCHMARK
    benchmark = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    return Results(summary, run, tables, benchmark)


def _evaluation_of(folder: Path) -> Path:
    """The folder itself, or where it is a benchmark's the one evaluation in it."""
    if (folder / EVALUATION).is_file() or not (folder / "eval").is_dir():
        return folder
    found = sorted(path.parent for path in (folder / "eval").rglob(EVALUATION))
    if len(found) > 1:
        names = ", ".join(f"{folder.name}/eval/{path.name}" for path in found)
        raise UsageError(
            f"{folder.name!r} holds an evaluation for each training site",
            remedy=f"give one of {names}; each report shows the table of all",
        )
    return found[0] if found else folder
