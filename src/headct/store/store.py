"""Reading a store: canonical volumes by scan id, batches of HU by row, every read checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorstore as ts
from numpy.typing import NDArray

from headct.errors import StoreError
from headct.store.layout import open_array, read_info
from headct.store.manifest import affine_of
from headct.store.writer import committed_rows, hu_sha256
from headct.volume.preprocessing import Preprocessing
from headct.volume.volume import Volume


def open_store(path: str | Path) -> Store:
    """Open a store for reading; it may be written to meanwhile, this shows what was committed.

    Raises:
        StoreError: no store there, another format version, or a damaged manifest.
    """
    folder = Path(path)
    info = read_info(folder)
    return Store(folder, info.preprocessing, committed_rows(folder))


class Store:
    """Canonical volumes of many scans; made by `open_store`.

    Pickles as its path; the array is opened on first use, once per process.

    Attributes:
        path: the folder.
        preprocessing: how the volumes were made; its hash travels with everything made from them.
        manifest: one row per scan, in the order of the array.
        scan_ids: pseudonymous names, in the same order.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing, manifest: pa.Table) -> None:
        self.path = path
        self.preprocessing = preprocessing
        self.manifest = manifest
        self.scan_ids: list[str] = manifest["scan_id"].to_pylist()
        self._shas: list[str] = manifest["hu_sha256"].to_pylist()
        self._row_of = {scan_id: row for row, scan_id in enumerate(self.scan_ids)}

    def __len__(self) -> int:
        return len(self.scan_ids)

    def __contains__(self, scan_id: str) -> bool:
        return scan_id in self._row_of

    def __getitem__(self, scan_id: str) -> Volume:
        """One canonical volume with its geometry, provenance and flags.

        Raises:
            StoreError: no such scan, or its voxels are damaged.
        """
        row = self.row_of(scan_id)
        values = self.manifest.slice(row, 1).to_pylist()[0]
        return Volume(
            hu=self.read_hu([row])[0],
            affine_zyx=affine_of(values["affine_zyx"]),
            provenance=tuple(json.loads(values["provenance"] or "[]")),
            flags=tuple(values["flags"] or ()),
        )

    def __reduce__(self) -> tuple[Callable[[Path], Store], tuple[Path]]:
        return open_store, (self.path,)

    def row_of(self, scan_id: str) -> int:
        """Row of a scan in the manifest and in the array.

        Raises:
            StoreError: no such scan.
        """
        try:
            return self._row_of[scan_id]
        except KeyError:
            raise StoreError(
                f"the store has no scan {scan_id}",
                remedy="see `headct store stats`",
                code="no-scan",
            ) from None

    def read_hu(self, rows: Sequence[int], *, verify: bool = True) -> NDArray[np.int16]:
        """Voxels of several scans.

        Args:
            rows: row numbers, in any order, repeats allowed.
            verify: compare each scan with its SHA-256; a CRC-32C is checked in any case.

        Returns:
            HU, int16 [n z y x].

        Raises:
            StoreError: a row that is not there, or a damaged scan, which is named.
        """
        outside = [row for row in rows if not 0 <= row < len(self)]
        if outside:
            raise StoreError(f"the store has {len(self)} rows, no row {outside[0]}")
        hu = np.empty((len(rows), *self.preprocessing.shape_zyx), np.int16)
        # straight into their place, without an array of its own for each
        reads = [
            ts.array(out).write(self._array[int(row)]) for out, row in zip(hu, rows, strict=True)
        ]
        for index, (row, read) in enumerate(zip(rows, reads, strict=True)):
            try:
                read.result()
            except (ValueError, RuntimeError) as error:
                raise self._damaged(row) from error
            if verify and hu_sha256(hu[index]) != self._shas[row]:
                raise self._damaged(row)
        return hu

    @cached_property
    def _array(self) -> ts.TensorStore:
        array = open_array(self.path)
        if tuple(array.shape[1:]) != self.preprocessing.shape_zyx or array.shape[0] < len(self):
            raise StoreError("hu.zarr does not fit the manifest", remedy="restore it from a copy")
        return array

    def _damaged(self, row: int) -> StoreError:
        return StoreError(
            f"the voxels of scan {self.scan_ids[row]} (row {row}) are damaged or missing",
            remedy="run `headct store verify`, then restore hu.zarr or ingest the scan again",
            code="damaged-scan",
        )
