"""The manifest: one row per scan with pseudonymous ids, hashes, geometry and acquisition."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headct.atomic import replacing
from headct.errors import StoreError

_FLOATS = pa.list_(pa.float64())

SCHEMA = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("series_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("hu_sha256", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("site", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("manufacturer", pa.string()),
        pa.field("model", pa.string()),
        pa.field("kernel", pa.string()),
        pa.field("kvp", pa.float64()),
        pa.field("slice_thickness_mm", pa.float64()),
        pa.field("spacing_mm_zyx", _FLOATS),
        pa.field("shape_zyx", pa.list_(pa.int64())),
        pa.field("n_slices", pa.int64()),
        pa.field("age_years", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("affine_zyx", _FLOATS, nullable=False),
        pa.field("provenance", pa.string()),
        pa.field("same_scan", pa.string()),
        pa.field("criteria", pa.string()),
    ]
)
"""Columns of manifest.parquet.

`row` is the index in hu.zarr. `spacing_mm_zyx`, `shape_zyx` and `n_slices` are those of the native
series; `affine_zyx` (16 numbers) takes canonical voxels to world millimetres. `provenance` is JSON.
`same_scan` is equal for all reconstructions of one acquisition: the scan_id of the best of them.
`criteria` is the hash of the criteria that let the scan in.
"""


LATER = frozenset({"same_scan", "criteria"})


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as plain JSON values with every column; missing and NaN become None.

    Raises:
        StoreError: an unknown column, or a required one without a value.
    """
    unknown = sorted(set(row) - set(SCHEMA.names))
    if unknown:
        raise StoreError(
            f"the manifest has no columns {unknown}", remedy=f"known: {', '.join(SCHEMA.names)}"
        )
    values = {name: _plain(row.get(name)) for name in SCHEMA.names}
    absent = [f.name for f in SCHEMA if not f.nullable and values[f.name] is None]
    if absent:
        raise StoreError(f"a manifest row needs values for {absent}", remedy="give them")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows (with every column) as a table.

    Raises:
        StoreError: a value of another type than its column.
    """
    try:
        return pa.Table.from_pylist(list(rows), schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise StoreError(
            f"a manifest value has the wrong type: {error}", remedy="mend it"
        ) from error


def read_manifest(path: Path) -> pa.Table:
    """Read manifest.parquet; an empty table where there is none yet.

    Raises:
        StoreError: the file is damaged, or its columns are not ours.
    """
    if not path.exists():
        return SCHEMA.empty_table()
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path.name} cannot be read",
            remedy="run `headct store rebuild`",
            code="damaged-manifest",
        ) from error
    for column in SCHEMA.names[table.num_columns :]:  # older stores lack the last ones
        if column in LATER:
            table = table.append_column(column, pa.nulls(table.num_rows))
    if table.column_names != SCHEMA.names:
        raise StoreError(f"{path.name} has other columns than this format", remedy="ingest again")
    return table.cast(SCHEMA)


def write_manifest(path: Path, table: pa.Table) -> None:
    """Write manifest.parquet whole or not at all."""
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def affine_of(value: list[float]) -> NDArray[np.float64]:
    """The 4x4 affine from a cell of `affine_zyx`."""
    return np.asarray(value, dtype=np.float64).reshape(4, 4)
