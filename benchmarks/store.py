"""Files indexed, scans read at random and bytes a scan, for one core and a warm cache.

    python benchmarks/store.py [--json] [--scans N]

Cases: `index` (headers of 512 x 512 slices, files a CPU second), `random-read` (whole scans of a
96^3 store in random order, checksums compared, scans a CPU second), `bytes` (of a scan on disk, and
how many times smaller than three channels of fp16 on the same grid).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

for name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{name}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
from preprocess import scan, write_inputs  # noqa: E402

from headct.dicom.index import index_paths  # noqa: E402
from headct.store.store import open_store  # noqa: E402
from headct.store.writer import StoreWriter  # noqa: E402
from headct.volume.canonical import to_canonical  # noqa: E402
from headct.volume.preprocessing import Preprocessing  # noqa: E402

GRID = Preprocessing(shape_zyx=(96, 96, 96), spacing_mm_zyx=(2.0, 2.4, 2.0))
REPEAT = 3


def index_rate(folder: Path) -> dict[str, Any]:
    """Headers of one series, read again and again."""
    write_inputs(folder)
    series = folder / "series"
    n = len(list(series.iterdir()))
    times = []
    for _ in range(REPEAT + 1):
        start = time.process_time()
        found = index_paths([series])
        times.append(time.process_time() - start)
        assert sum(len(s.headers) for s in found.series) == n
    return {"case": "index", "files_per_s": round(n / min(times)), "wanted": 1000}


def store_rates(folder: Path, n_scans: int) -> list[dict[str, Any]]:
    """A store of one head with different noise."""
    hu = to_canonical(scan(160), GRID).hu
    rng = np.random.default_rng(1)
    with StoreWriter(folder / "store", GRID) as writer:
        for i in range(n_scans):
            noise = rng.normal(0, 4, hu.shape).astype(np.int16) * (hu > -1000)
            ids = {f"{name}_id": f"{name[0]}-{i:016x}" for name in ("patient", "study", "series")}
            row = {"scan_id": f"c-{i:016x}", "status": "accepted", "affine_zyx": np.eye(4)} | ids
            writer.append(hu + noise, row)
    store = open_store(folder / "store")
    order = rng.permutation(n_scans)
    times: dict[bool, list[float]] = {True: [], False: []}
    for verify in (True, False) * REPEAT:
        start = time.process_time()
        for i in order:
            store.read_hu([int(i)], verify=verify)
        times[verify].append(time.process_time() - start)
    n_bytes = sum(
        p.stat().st_size for p in (folder / "store" / "hu.zarr").rglob("*") if p.is_file()
    )
    return [
        {
            "case": "random-read",
            "scans_per_s": round(n_scans / min(times[True])),
            "without_sha256": round(n_scans / min(times[False])),
            "wanted": 300,
        },
        {
            "case": "bytes",
            "bytes_per_scan": n_bytes // n_scans,
            "times_smaller": round(hu.size * 3 * 2 * n_scans / n_bytes, 2),
            "wanted": 6,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line per case")
    parser.add_argument("--scans", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = [index_rate(Path(name)), *store_rates(Path(name), options.scans)]
    for result in results:
        text = "  ".join(f"{key} {value}" for key, value in result.items())
        print(json.dumps(result) if options.json else text)


if __name__ == "__main__":
    main()
