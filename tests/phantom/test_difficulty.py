"""The benchmark of difficulty says what it is asked, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from headct.phantom.profile import FINDINGS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "difficulty.py"
SMALL = ("--n-train", "40", "--n-test", "25", "--draws", "1", "--jobs", "1")
MANY = [f"prevalence.{finding}=0.3" for finding in FINDINGS if finding != "midline_shift"]


def run(work: Path) -> list[dict[str, float | str]]:
    done = subprocess.run(
        [sys.executable, SCRIPT, work, "--what", "floors", *SMALL, "--set", *MANY],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()][:-1]


def test_floors_inside_and_outside(tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert [(row["what"], row["test"]) for row in rows] == [
        ("histogram", "inside"),
        ("histogram", "outside"),
        ("blocks", "inside"),
        ("blocks", "outside"),
    ]
    assert all(0.3 < float(row["macro"]) < 0.8 and row["n_train"] == 40 for row in rows)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert shards
    assert run(tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == shards
