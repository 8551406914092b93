"""Retrieval: does a scan find the train scans with the same finding first?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headct.adapt.knn import Floats, Neighbours, unit
from headct.atomic import replacing
from headct.store.label_table import UNKNOWN
from headct.store.labels import Labels

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("scan_id", "patient_id", "site", "finding")),
        pa.field("average_precision", pa.float64()),
        pa.field("chance", pa.float64()),
    ]
)
"""One row per test scan and finding that it has; `chance` is the share of train scans with it."""


def write_retrieval(path: Path, bank: Neighbours, x: Floats, labels: Labels) -> None:
    """Rank the train scans by cosine to every test scan and write the average precisions.

    Args:
        path: Parquet file to write.
        bank: the train scans.
        x: standardised features of all labelled scans, [n d].
        labels: of the same scans.
    """
    rows = []
    test = labels.positions("test")
    for f, finding in enumerate(labels.findings):
        queries = test[labels.values[test, f] == 1]
        known = bank.values[:, f] != UNKNOWN
        relevant = bank.values[known, f] == 1
        precision = average_precision(unit(x[queries]) @ bank.bank[known].T, relevant)
        chance = float(relevant.mean())
        rows += [
            {
                "scan_id": labels.scan_id[query],
                "patient_id": labels.patient_id[query],
                "site": labels.site[query],
                "finding": finding,
                "average_precision": float(value),
                "chance": chance,
            }
            for query, value in zip(queries, precision, strict=True)
        ]
    with replacing(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")


def average_precision(similarity: Floats, relevant: NDArray[np.bool_]) -> Floats:
    """Mean, over the relevant rows, of the precision of the ranking down to each.

    Args:
        similarity: [q m] of queries to what is ranked.
        relevant: [m].

    Returns:
        [q]
    """
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = relevant[order]
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((precision * hits).sum(axis=1) / max(1, relevant.sum()))
