"""Names, format version and array layout of a store folder.

STORE/  store.json        grid, preprocessing hash, format version
        hu.zarr           hu[scan, z, y, x] int16, one scan a chunk, several scans a shard
        manifest.parquet  one row per scan, in the order of the array
        manifest.copy.parquet  the same again, for `headct store rebuild`
        journal.jsonl     rows committed since manifest.parquet was written (absent when closed)
        items.jsonl       one line per series or file that was looked at
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorstore as ts

from headct.atomic import write_json
from headct.config import Config
from headct.errors import StoreError
from headct.volume.preprocessing import Preprocessing
from headct.volume.volume import AIR_HU

FORMAT_VERSION = 1
STORE_JSON = "store.json"
ARRAY = "hu.zarr"
MANIFEST = "manifest.parquet"
MANIFEST_COPY = "manifest.copy.parquet"
JOURNAL = "journal.jsonl"
ITEMS = "items.jsonl"
LOCK = ".writer.lock"


class StoreInfo(Config):
    """What store.json says."""

    format_version: int = FORMAT_VERSION
    preprocessing: Preprocessing
    shard_scans: int = 32
    """Scans per shard, that is per file of hu.zarr."""


def write_info(folder: Path, info: StoreInfo) -> None:
    """Write store.json."""
    values = info.model_dump(mode="json", exclude={"preprocessing": {"hash"}})
    write_json(folder / STORE_JSON, values | {"preprocessing_hash": info.preprocessing.hash})


def read_info(folder: Path) -> StoreInfo:
    """Read and check store.json.

    Raises:
        StoreError: no store there, another format version, or a damaged store.json.
    """
    path = folder / STORE_JSON
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{folder.name!r} is not a store: it has no {STORE_JSON}",
            remedy="make one with `headct ingest SRC --out STORE`",
            code="no-store",
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{STORE_JSON} cannot be read", remedy="restore it from a copy") from error
    _require_version(values)
    recorded = values.pop("preprocessing_hash", None)
    try:
        info = StoreInfo.model_validate(values)
    except ValueError as error:
        raise StoreError(f"{STORE_JSON} is damaged", remedy="restore it from a copy") from error
    if info.preprocessing.hash != recorded:
        raise StoreError(
            f"{STORE_JSON} was changed: its hash does not fit its preprocessing",
            remedy="restore it from a copy, or ingest again",
        )
    return info


def _require_version(values: Any) -> None:
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"the store has format version {version}, this headct reads version {FORMAT_VERSION}",
            remedy="use the headct that wrote it, or ingest again",
            code="store-version",
        )


def array_spec(folder: Path) -> dict[str, Any]:
    """TensorStore spec that opens hu.zarr, whose paths must not hold `..`."""
    path = (folder / ARRAY).resolve()
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}


def open_array(folder: Path) -> ts.TensorStore:
    """The hu.zarr of a store.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        return ts.open(array_spec(folder), open=True).result()
    except (ValueError, RuntimeError) as error:
        raise StoreError(
            f"{ARRAY} cannot be opened", remedy="restore it from a copy, or ingest again"
        ) from error


def create_array(folder: Path, info: StoreInfo) -> ts.TensorStore:
    """A new hu.zarr with no scans.

    Chunks carry a CRC-32C; shards are blosc zstd of shuffled bytes, 4 to 5 times smaller than
    int16: smaller and faster to read than with shuffled bits.
    """
    scan = list(info.preprocessing.shape_zyx)
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {
            "name": "blosc",
            "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": 2},
        },
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": [1, *scan],
        "codecs": codecs,
        "index_codecs": [codecs[0], codecs[2]],
        "index_location": "end",
    }
    metadata = {
        "shape": [0, *scan],
        "data_type": "int16",
        "fill_value": AIR_HU,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [info.shard_scans, *scan]},
        },
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["scan", "z", "y", "x"],
    }
    return ts.open(array_spec(folder) | {"metadata": metadata}, create=True).result()
