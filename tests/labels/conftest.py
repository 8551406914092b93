"""A key and a head that the tests of labels share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.labels.sets import KEY

from headct.phantom.decoys import HeadSeries
from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(KEY.hex())
    path.chmod(0o600)
    return path


@pytest.fixture(scope="session")
def head() -> HeadSeries:
    """A head of few slices."""
    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    series = rendered_series(preset, plan_studies(preset)[0])[0]
    return replace(series, transfer_syntax="explicit")
