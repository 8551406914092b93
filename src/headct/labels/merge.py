"""Several label tables about scans of one key -> one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from headct.errors import LabelError, UsageError
from headct.labels.table import Labelled, Row
from headct.labels.vocabulary import Value, contradicts, implied

Rule = Literal["error", "present", "absent", "unknown", "first"]
"""What holds where two tables disagree about a finding of a scan."""


def merge(tables: Sequence[Labelled], names: Sequence[str], rule: Rule = "error") -> Labelled:
    """Rows of all tables; what one table does not know another may.

    Args:
        tables: in order of their weight under the rule "first".
        names: of the tables, for errors.
        rule: for a finding that is present in one table and absent in another.

    Raises:
        UsageError: tables with different keys.
        LabelError: a scan with two patients, sites or splits; or, under the rule "error", with
            contradicting labels.
    """
    if len({table.key for table in tables}) > 1:
        raise UsageError(
            f"the tables name scans differently: {', '.join(table.key for table in tables)}",
            remedy="give --store: it knows which scans these are",
        )
    merged: dict[str, Row] = {}
    n_shared = 0
    faults: list[str] = []
    settled: Counter[str] = Counter()
    for table, name in zip(tables, names, strict=True):
        for row in table.rows:
            other = merged.get(row.name)
            if other is None:
                merged[row.name] = row
                continue
            n_shared += 1
            disputed = _disputed(other.values, row.values)
            settled.update(disputed)
            if disputed and rule == "error":
                faults.append(f"{name} line {row.line}: {', '.join(disputed)}")
            merged[row.name] = _joined(other, row, rule, name)
    if faults:
        shown = "\n  ".join(faults[:5])
        more = "\n  ..." if len(faults) > 5 else ""
        raise LabelError(
            f"{len(faults)} rows contradict an earlier table:\n  {shown}{more}",
            remedy="mend them, or say what holds with --on-conflict",
        )
    rows = [_completed(merged[name], rule) for name in sorted(merged)]
    counts = {f"contradictions about {f}: {rule}": n for f, n in sorted(settled.items())}
    notes = [f"{n_shared} scans are in more than one table"] if n_shared else []
    notes = [*(note for table in tables for note in table.notes), *notes]
    notes += [f"{n} {what}" for what, n in counts.items()]
    return Labelled(tables[0].key, rows, sum(table.n_read for table in tables), notes)


def _disputed(first: dict[str, Value], second: dict[str, Value]) -> list[str]:
    return [name for name, value in second.items() if {value, first.get(name)} == {0, 1}]


def _joined(first: Row, second: Row, rule: Rule, name: str) -> Row:
    about: dict[str, str] = {}
    for column in ("patient_id", "site", "split"):
        given = {getattr(row, column) for row in (first, second)} - {""}
        if len(given) > 1:
            raise LabelError(
                f"{name} line {second.line}: another {column} than in an earlier table",
                remedy="mend the tables; --store knows patients, --split draws splits anew",
            )
        about[column] = next(iter(given), "")
    values = _settled(first.values, second.values, rule)
    return Row(first.name, values=values, line=first.line, **about)


def _settled(first: dict[str, Value], second: dict[str, Value], rule: Rule) -> dict[str, Value]:
    values = dict(first)
    for name, value in second.items():
        other = values.get(name)
        if other is None:
            values[name] = value
        elif value is not None and value != other:
            values[name] = {"present": 1, "absent": 0, "unknown": None}.get(rule, other)
    return values


def _completed(row: Row, rule: Rule) -> Row:
    if contradicts(row.values) and rule != "present":
        raise LabelError(
            "a scan has a finding, but not what the finding implies (say, sdh without ich)",
            remedy="mend the tables, or take it for implied with --on-conflict present",
        )
    return replace(row, values=implied(row.values))
