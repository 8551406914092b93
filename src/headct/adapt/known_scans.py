"""The scans of a store without their voxels: what labels are joined to, kept inside feature tables.

So `headct probe --features F --labels L` needs no store: the table says which scans there are, of
whom, on what grid, and what ingest refused. All names are pseudonyms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from headct.store.labels import refused_ids
from headct.store.layout import ITEMS
from headct.store.store import Store
from headct.volume.preprocessing import Preprocessing

COLUMNS = ("scan_id", "patient_id", "study_id", "series_id", "site", "hu_sha256", "row")
ABOUT = b"headct-scans"


@dataclass(frozen=True)
class KnownScans:
    """What is known of the scans of a store.

    Attributes:
        manifest: columns COLUMNS, a row per scan.
        preprocessing: of the canonical volumes.
        refused: scan, study and series ids that ingest did not take.
    """

    manifest: pa.Table
    preprocessing: Preprocessing
    refused: frozenset[str] = frozenset()

    def as_table(self) -> pa.Table:
        """The manifest, with the rest as metadata of its schema."""
        about = {
            "preprocessing": self.preprocessing.model_dump(mode="json", exclude={"hash"}),
            "refused": sorted(self.refused),
        }
        metadata = {ABOUT: json.dumps(about).encode()}
        return self.manifest.replace_schema_metadata(metadata)


def scans_of_store(store: Store) -> KnownScans:
    """What a store knows of its scans."""
    refused = refused_ids(store.path / ITEMS)
    return KnownScans(store.manifest.select(COLUMNS), store.preprocessing, refused)


def scans_of_table(table: pa.Table) -> KnownScans | None:
    """What `as_table` gave, from a table with these and other columns; None where it is not there.

    Raises:
        ValueError: it is damaged.
    """
    text = (table.schema.metadata or {}).get(ABOUT)
    if text is None:
        return None
    about = json.loads(text)
    preprocessing = Preprocessing.model_validate(about["preprocessing"])
    manifest = table.select(COLUMNS).replace_schema_metadata(None)
    return KnownScans(manifest, preprocessing, frozenset(about["refused"]))
