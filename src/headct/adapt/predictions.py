"""predictions.parquet: one row per scan and finding, with what made the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headct.atomic import replacing
from headct.errors import CheckpointError
from headct.store.label_table import UNKNOWN
from headct.store.labels import Labels

SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("finding", pa.string(), nullable=False),
        pa.field("y_true", pa.int8(), nullable=False),
        pa.field("y_score", pa.float64(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("k", pa.int32()),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("n_train", pa.int32(), nullable=False),
        pa.field("bundle_hash", pa.string(), nullable=False),
        pa.field("preprocessing_hash", pa.string(), nullable=False),
    ]
)
"""Columns of predictions.parquet. `k` is the few-shot K, null for other methods; `n_train` counts
the labelled training scans of the finding. Scans whose label is unknown have no row."""
_DECIMALS = 6


def rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores as they are written, served and held against thresholds.

    The last bits of a product depend on the number of scans in it; a score must not.

    Raises:
        CheckpointError: a score is no number: a threshold would call it absent.
    """
    if not np.isfinite(scores).all():
        raise CheckpointError(
            "a score is not finite",
            remedy="the training of its encoder or head has diverged: lower the rates",
            code="nonfinite-weights",
        )
    return scores.astype(np.float64).round(_DECIMALS)


def to_predictions(
    labels: Labels,
    scores: NDArray[np.float64],
    *,
    method: str,
    seed: int,
    n_train: Sequence[int],
    bundle_hash: str,
    preprocessing_hash: str,
    k: int | None = None,
) -> pa.Table:
    """Scores [n f] of labelled scans as rows; unknown labels are left out.

    Args:
        labels: of the n scans and f findings.
        scores: in [0, 1].
        method: name of the method in tables and plots.
        seed: of the draw of labels or of the training.
        n_train: labelled training scans per finding.
        bundle_hash: of the encoder; empty where there is none.
        preprocessing_hash: of the canonical volumes.
        k: positives (and negatives) per finding in few-shot.
    """
    scan, finding = np.nonzero(labels.values != UNKNOWN)
    n = len(scan)
    columns = {
        "scan_id": labels.scan_id[scan],
        "patient_id": labels.patient_id[scan],
        "site": labels.site[scan],
        "split": labels.split[scan],
        "finding": np.array(labels.findings, dtype=object)[finding],
        "y_true": labels.values[scan, finding],
        "y_score": rounded(scores[scan, finding]),
        "method": [method] * n,
        "k": [k] * n,
        "seed": [seed] * n,
        "n_train": np.asarray(n_train, dtype=np.int32)[finding],
        "bundle_hash": [bundle_hash] * n,
        "preprocessing_hash": [preprocessing_hash] * n,
    }
    return pa.table(columns, schema=SCHEMA)


def write_predictions(path: Path, table: pa.Table) -> None:
    """Write predictions.parquet whole or not at all."""
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")
