"""The same scans in every process, with any number of threads, on other processors, to the bit.

The digests of golden.json were made on one machine. They are compared here, and again with the
vector instructions of numpy and the matrix kernels of OpenBLAS of a processor of 2008.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
EXTENSIONS = np.show_config(mode="dicts")["SIMD Extensions"]
ENVIRONMENTS = {
    "as it is": {},
    "two threads, other hashes": {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "5"},
    "an old processor": {
        "NPY_DISABLE_CPU_FEATURES": " ".join(EXTENSIONS.get("found", [])),
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_scans_are_those_of_the_golden_digests(environment: str) -> None:
    found = subprocess.run(
        [sys.executable, HERE / "golden.py"],
        env={**os.environ, **ENVIRONMENTS[environment]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout) == json.loads((HERE / "golden.json").read_text())
