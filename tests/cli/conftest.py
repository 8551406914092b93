from __future__ import annotations

from pathlib import Path

import pytest

from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    series = rendered_series(preset, plan_studies(preset)[0])[0]
    out = tmp_path_factory.mktemp("in")
    for n, data in enumerate(series.files()):
        (out / f"{n:03d}").write_bytes(data)
    return out
