"""Feature tables: one row per scan, a few named vectors, and the hashes of what made them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headct.adapt.known_scans import KnownScans, scans_of_store, scans_of_table
from headct.atomic import replacing
from headct.errors import MismatchError, UsageError
from headct.progress import tracking
from headct.store.ahead import SCANS_AT_ONCE, read_batches
from headct.store.store import Store
from headct.volume.preprocessing import Preprocessing

IDS = ("scan_id", "patient_id", "study_id")
HASHES = ("bundle_hash", "preprocessing_hash")
ABOUT = b"headct"
Vectors = dict[str, NDArray[np.float32]]
"""Named vectors of n scans: name -> [n d]."""


@dataclass(frozen=True)
class FeatureTable:
    """Vectors of n scans.

    Attributes:
        scan_id: names in the store, [n].
        patient_id: [n].
        study_id: [n].
        vectors: `cls`, `mean`, `max` [n d], `region` [n cells*d] of an encoder; or a floor's own.
        source: encoder, random-init, histogram or blocks.
        bundle_hash: of the weights; empty where no network took part.
        preprocessing_hash: of the canonical volumes.
        init_seed: of the weights of random-init.
        scans: all that is known of the scans of the store; None of a table from elsewhere.
    """

    scan_id: NDArray[np.object_]
    patient_id: NDArray[np.object_]
    study_id: NDArray[np.object_]
    vectors: Vectors
    source: str
    bundle_hash: str
    preprocessing_hash: str
    init_seed: int = 0
    scans: KnownScans | None = None

    def __len__(self) -> int:
        return len(self.scan_id)

    def of(self, scan_ids: Sequence[str]) -> FeatureTable:
        """The rows of some scans, in the order given.

        Raises:
            MismatchError: scans that the table does not have.
        """
        row_of = {scan_id: row for row, scan_id in enumerate(self.scan_id)}
        absent = [scan_id for scan_id in scan_ids if scan_id not in row_of]
        if absent:
            raise MismatchError(
                f"the feature table lacks {len(absent)} of {len(scan_ids)} labelled scans",
                remedy="run `headct embed` on the store that the labels are about",
            )
        rows = np.array([row_of[scan_id] for scan_id in scan_ids], dtype=np.int64)
        ids = {name: getattr(self, name)[rows] for name in IDS}
        vectors = {name: values[rows] for name, values in self.vectors.items()}
        return replace(self, vectors=vectors, scans=None, **ids)

    def require_made_on(self, preprocessing: Preprocessing) -> None:
        """Raise MismatchError where the vectors are of other canonical volumes.

        Tables from elsewhere do not say, and pass.
        """
        if self.preprocessing_hash not in ("", preprocessing.hash):
            raise MismatchError(
                f"the features have preprocessing {self.preprocessing_hash}, "
                f"the store has {preprocessing.hash}",
                remedy="run `headct embed` on the store that the labels are about",
            )


def tabulate(
    store: Store,
    featurise: Callable[[NDArray[np.int16]], Vectors],
    *,
    source: str,
    bundle_hash: str = "",
    init_seed: int = 0,
    batch_scans: int = SCANS_AT_ONCE,
) -> FeatureTable:
    """Run a function over every scan of a store.

    Args:
        store: canonical volumes.
        featurise: HU [b z y x] -> named vectors [b d].
        source: what the function is, for the table.
        bundle_hash: of the weights that it uses.
        init_seed: of weights that were never trained.
        batch_scans: scans per call.
    """
    parts = list(_batches(store, featurise, batch_scans))
    if not parts:
        raise UsageError("the store has no scans", remedy="ingest some first")
    ids = {name: np.array(store.manifest[name].to_pylist(), dtype=object) for name in IDS}
    return FeatureTable(
        **ids,
        vectors={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        source=source,
        bundle_hash=bundle_hash,
        preprocessing_hash=store.preprocessing.hash,
        init_seed=init_seed,
        scans=scans_of_store(store),
    )


def _batches(
    store: Store, featurise: Callable[[NDArray[np.int16]], Vectors], batch_scans: int
) -> Iterator[Vectors]:
    with tracking("embed", len(store)) as tracker:
        for rows, hu in read_batches(store, scans_at_once=batch_scans):
            yield featurise(hu)
            tracker.advance(len(rows))


def write_features(path: Path, table: FeatureTable) -> None:
    """Write a feature table as Parquet: vectors as fixed-size lists, `region` in half precision."""
    columns: dict[str, Any] = {name: pa.array(getattr(table, name)) for name in IDS}
    kept = table.scans.as_table() if table.scans is not None else None
    if kept is not None:
        columns |= {name: kept[name] for name in kept.column_names if name not in IDS}
    for name, values in table.vectors.items():
        half = values.astype(np.float16 if name == "region" else np.float32)
        flat = pa.array(np.ascontiguousarray(half).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    for name in HASHES:
        columns[name] = pa.array([getattr(table, name)] * len(table)).dictionary_encode()
    about = {
        "source": table.source,
        "vectors": list(table.vectors),
        "init_seed": table.init_seed,
    }
    metadata = {ABOUT: json.dumps(about).encode()} | (kept.schema.metadata if kept else {})
    data = pa.table(columns).replace_schema_metadata(metadata)
    with replacing(path) as aside:
        pq.write_table(data, aside, compression="zstd")


def read_features(path: Path) -> FeatureTable:
    """Read a feature table.

    A table from elsewhere is taken too, which is how the embeddings of any other encoder enter:
    Parquet with `scan_id` and lists of numbers of one length, or NPZ with `scan_id` [n] and arrays
    [n d].

    Raises:
        UsageError: no such file, no Parquet, no vectors, vectors of unequal length, doubled scans.
        MismatchError: rows that come from different weights or preprocessings.
    """
    try:
        data = _from_npz(path) if path.suffix == ".npz" else pq.read_table(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path.name!r} is not a feature table",
            remedy="make one with `headct embed`, or give Parquet or NPZ",
        ) from error
    if "scan_id" not in data.column_names:
        raise UsageError("the feature table has no column scan_id", remedy="name the scans")
    about = about_table(data)
    names = about.get("vectors") or [f.name for f in data.schema if _is_list(f.type)]
    if not names:
        raise UsageError("the feature table has no vectors", remedy="add a column of lists")
    ids = {name: _texts(data, name) for name in IDS}
    if len(set(ids["scan_id"])) < len(data):
        raise UsageError("the feature table has a scan twice", remedy="keep one row per scan")
    return FeatureTable(
        **ids,
        vectors={name: _matrix(data, name) for name in names},
        source=about["source"],
        bundle_hash=only_value(data, "bundle_hash"),
        preprocessing_hash=only_value(data, "preprocessing_hash"),
        init_seed=about.get("init_seed", 0),
        scans=scans_of_table(data),
    )


def _from_npz(path: Path) -> pa.Table:
    """Arrays as columns; nothing pickled is read."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    lengths = {len(values) if values.ndim else 0 for values in arrays.values()}
    if len(lengths) > 1 or any(values.ndim > 2 for values in arrays.values()):
        raise ValueError("arrays [n] and [n d] of one n are wanted")
    return pa.table(
        {
            name: pa.array(values.tolist() if values.ndim == 1 else list(values))
            for name, values in arrays.items()
        }
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _texts(data: pa.Table, name: str) -> NDArray[np.object_]:
    values = data[name].to_pylist() if name in data.column_names else [""] * len(data)
    return np.array(values, dtype=object)


def about_table(data: pa.Table) -> dict[str, Any]:
    """What made the vectors of a feature table, besides the hashes in its columns."""
    return dict(json.loads((data.schema.metadata or {}).get(ABOUT, b'{"source": "external"}')))


def only_value(data: pa.Table, name: str) -> str:
    """The one text of a column; empty where the column is not there.

    Raises:
        MismatchError: rows differ.
    """
    values = set(data[name].unique().to_pylist()) if name in data.column_names else {""}
    if len(values) > 1:
        raise MismatchError(
            f"the feature table mixes {len(values)} values of {name}",
            remedy="embed all scans with one bundle and one store",
        )
    return str(next(iter(values), ""))


def _matrix(data: pa.Table, name: str) -> NDArray[np.float32]:
    column = data[name].combine_chunks()
    lengths = np.diff(column.offsets.to_numpy()) if pa.types.is_list(column.type) else []
    if len(set(np.asarray(lengths).tolist())) > 1 or column.null_count:
        raise UsageError(f"vectors of unequal length in {name}", remedy="give all the same length")
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values).reshape(len(data), -1).all(axis=1)).sum())
        raise UsageError(
            f"{n} rows of {name} hold NaN or infinite numbers", remedy="leave out those scans"
        )
    return values.reshape(len(data), -1)
