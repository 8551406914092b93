"""A feature table that is there already: the same, one of fewer scans, or another's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from headct.adapt.features import HASHES, about_table, only_value
from headct.adapt.known_scans import COLUMNS, KnownScans, scans_of_table
from headct.errors import UsageError


@dataclass(frozen=True)
class Maker:
    """What vectors depend on besides the scans; fields as in `FeatureTable`."""

    source: str
    bundle_hash: str
    preprocessing_hash: str
    init_seed: int = 0

    def __str__(self) -> str:
        bundle = f", bundle {self.bundle_hash}" if self.bundle_hash else ""
        return (
            f"{self.source}{bundle}, preprocessing {self.preprocessing_hash}, seed {self.init_seed}"
        )


def require_no_other(path: Path, maker: Maker) -> KnownScans | None:
    """The scans of the feature table at `path`; None where nothing is there.

    Raises:
        UsageError: it is of another maker, or no feature table of ours.
    """
    if not path.exists():
        return None
    try:
        table = pq.read_table(path, columns=[*COLUMNS, *HASHES])
        scans = scans_of_table(table)
    except (OSError, ValueError, KeyError):
        scans = None
    if scans is None:
        raise _in_the_way(path, "is no feature table of `headct embed`")
    about = about_table(table)
    bundle_hash, preprocessing_hash = (only_value(table, name) for name in HASHES)
    earlier = Maker(about["source"], bundle_hash, preprocessing_hash, about["init_seed"])
    if earlier != maker:
        raise _in_the_way(path, f"was made with other things: {earlier}; asked for: {maker}")
    return scans


def is_made(path: Path, maker: Maker, scans: KnownScans) -> bool:
    """Whether `path` has the vectors of these scans; those of a part of them may be replaced.

    Raises:
        UsageError: as `require_no_other`, or the table has scans that are not among these.
    """
    earlier = require_no_other(path, maker)
    if earlier is None:
        return False
    names, now = (set(s.manifest["scan_id"].to_pylist()) for s in (earlier, scans))
    if names - now:
        raise _in_the_way(path, f"has {len(names - now)} scans that the source has not")
    same_rows = earlier.manifest.to_pydict() == scans.manifest.to_pydict()
    return same_rows and earlier.refused == scans.refused


def _in_the_way(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path.name!r} is there and {what}", remedy="give another --out, or remove it"
    )
