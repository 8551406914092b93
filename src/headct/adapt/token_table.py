"""Cached tokens of every scan: what the attentive probe reads, computed once.

TOKENS/  tokens.json    ids and hashes; written last, so a folder with it is whole
         patches.zarr   float16 [n t d], patch tokens after the final norm
         centres.zarr   float32 [n t 3], their places (z, y, x) in mm from the centre of the grid
         scans.parquet  what is known of the scans, so that labels can be joined without the store
         progress.json  rows that are done, while the table is being made
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from headct.adapt.known_scans import KnownScans, scans_of_store, scans_of_table
from headct.atomic import replacing, write_json
from headct.errors import MismatchError, UsageError
from headct.model.embed import Bundle, require_finite_vectors
from headct.progress import tracking
from headct.store.ahead import read_batches
from headct.store.store import Store

TOKENS_JSON = "tokens.json"
SCANS = "scans.parquet"
PROGRESS = "progress.json"
FORMAT_VERSION = 1
ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class TokenTable:
    """Tokens of n scans, read when they are asked for.

    Attributes:
        folder: where they are.
        scan_id: [n].
        bundle_hash: of the encoder.
        scans: what is known of the scans of the store.
    """

    folder: Path
    scan_id: tuple[str, ...]
    bundle_hash: str
    scans: KnownScans

    @property
    def preprocessing_hash(self) -> str:
        """Of the canonical volumes."""
        return self.scans.preprocessing.hash

    def rows_of(self, scan_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of some scans.

        Raises:
            MismatchError: scans that the table does not have.
        """
        row_of = {name: row for row, name in enumerate(self.scan_id)}
        absent = [name for name in scan_ids if name not in row_of]
        if absent:
            raise MismatchError(
                f"the token table lacks {len(absent)} of {len(scan_ids)} labelled scans",
                remedy="run `headct embed --tokens` on the store that the labels are about",
            )
        return np.array([row_of[name] for name in scan_ids], dtype=np.int64)

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Patch tokens [b t d] and their centres in mm [b t 3] of some rows."""
        patches = zarr.open_array(self.folder / "patches.zarr", mode="r")
        centres = zarr.open_array(self.folder / "centres.zarr", mode="r")
        found = [np.asarray(a.oindex[rows], np.float32) for a in (patches, centres)]
        return found[0], found[1]


def write_tokens(folder: Path, store: Store, bundle: Bundle) -> TokenTable:
    """Encode every scan of a store; stopped, the same call goes on.

    Raises:
        MismatchError: the bundle wants another preprocessing than the store has.
        UsageError: the folder holds something else, or the tokens of another bundle or store.
    """
    if folder.is_file():
        raise UsageError(
            f"--out {folder} is a file, no folder of tokens", remedy="give another --out"
        )
    bundle.preprocessing.require_same(store.preprocessing, "the bundle", "the store")
    if not len(store):
        raise UsageError("the store has no scans", remedy="ingest some first")
    about = {
        "format_version": FORMAT_VERSION,
        "bundle_hash": bundle.hash,
        "preprocessing_hash": store.preprocessing.hash,
        "scan_id": list(store.scan_ids),
    }
    if (folder / TOKENS_JSON).is_file():
        if _json(folder / TOKENS_JSON) == about:
            return read_tokens(folder)
        raise _others(folder)
    done = _done(folder, about)
    with tracking("embed", len(store)) as tracker:
        tracker.advance(done)
        for rows, hu in read_batches(store, range(done, len(store)), ROWS_AT_ONCE):
            tokens = bundle.encode_hu(hu)
            require_finite_vectors(tokens.cls.float().cpu().numpy())
            parts = {
                "patches": tokens.patches.float().cpu().numpy().astype(np.float16),
                "centres": tokens.centre_mm.float().cpu().numpy(),
            }
            for name, values in parts.items():
                _array(folder, name, len(store), values)[rows[0] : rows[-1] + 1] = values
            write_json(folder / PROGRESS, {"about": about, "done": rows[-1] + 1})
            tracker.advance(len(rows))
    with replacing(folder / SCANS) as aside:
        pq.write_table(scans_of_store(store).as_table(), aside, compression="zstd")
    write_json(folder / TOKENS_JSON, about)
    (folder / PROGRESS).unlink(missing_ok=True)
    return read_tokens(folder)


def _array(folder: Path, name: str, n: int, values: NDArray[Any]) -> Any:
    path = folder / f"{name}.zarr"
    if not (path / "zarr.json").exists():
        shape = (n, *values.shape[1:])
        chunks = (min(ROWS_AT_ONCE, n), *values.shape[1:])
        zarr.create_array(path, shape=shape, chunks=chunks, dtype=values.dtype)
    return zarr.open_array(path, mode="r+")


def _done(folder: Path, about: dict[str, Any]) -> int:
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PROGRESS, {"about": about, "done": 0})
        return 0
    state = _json(folder / PROGRESS) if (folder / PROGRESS).is_file() else {}
    if state.get("about") != about:
        raise _others(folder)
    return int(state["done"])


def _others(folder: Path) -> UsageError:
    return UsageError(
        f"{folder.name!r} holds other things than the tokens of this bundle and store",
        remedy="give another --out, or remove it",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def read_tokens(folder: Path) -> TokenTable:
    """Open a token table.

    Raises:
        UsageError: no table there, or one that is not finished.
    """
    about = _json(folder / TOKENS_JSON)
    scans = _scans(folder / SCANS)
    if about.get("format_version") != FORMAT_VERSION or scans is None:
        raise UsageError(
            f"{folder.name!r} is not a finished token table",
            remedy="make it with `headct embed STORE --bundle BUNDLE --tokens --out TOKENS`",
        )
    return TokenTable(folder, tuple(about["scan_id"]), about["bundle_hash"], scans)


def _scans(path: Path) -> KnownScans | None:
    try:
        return scans_of_table(pq.read_table(path))
    except (OSError, ValueError, pa.ArrowInvalid):
        return None
