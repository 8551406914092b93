"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real head CT and odd DICOM files; the test is skipped where it is absent."""
    folder = Path(os.environ.get("HEADCT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "real").is_dir():
        pytest.skip("no real scans here: set HEADCT_TEST_DATA to the folder that holds them")
    return folder
