"""A small archive: a few head series of invented patients, and what lies around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headct.phantom.decoys import HeadSeries
from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series

N_HEADS = 5


@pytest.fixture(scope="session")
def head_series() -> list[HeadSeries]:
    """Five head series of five patients; one rendering with different noise."""
    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    series = rendered_series(preset, plan_studies(preset)[0])[0]
    return [_variant(series, n) for n in range(N_HEADS)]


def _variant(series: HeadSeries, n: int) -> HeadSeries:
    noise = np.random.default_rng([5, n]).integers(-3, 4, series.hu.shape)
    header = replace(
        series.header,
        patient_name=f"Secretname^Patient{n}",
        patient_id=f"SECRETID{n}",
        study_uid=f"1.2.826.0.1.3680043.8.498.77{n}.1",
        series_uid=f"1.2.826.0.1.3680043.8.498.77{n}.2",
        accession=f"SECRETACC{n}",
        institution="Secret Hospital",
        series_description="Secretname axial",
    )
    hu = np.clip(series.hu + noise, -1024, 3071).astype(np.int16)
    return replace(series, hu=hu, header=header, transfer_syntax="explicit")


@pytest.fixture(scope="session")
def write_series() -> Callable[[Path, HeadSeries], list[Path]]:
    """`write_series(folder, series)`: one file per slice; their paths."""

    def write(folder: Path, series: HeadSeries) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, data in enumerate(series.files()):
            paths.append(folder / f"IM{number:04d}.dcm")
            paths[-1].write_bytes(data)
        return paths

    return write


@pytest.fixture(scope="session")
def archive(
    tmp_path_factory: pytest.TempPathFactory,
    head_series: list[HeadSeries],
    write_series: Callable[[Path, HeadSeries], list[Path]],
) -> Path:
    """Five heads, one of them with a damaged slice, a note, and an empty file."""
    folder = tmp_path_factory.mktemp("archive")
    for n, series in enumerate(head_series):
        paths = write_series(folder / f"Secretname_Patient{n}" / "CT", series)
    paths[3].write_bytes(paths[3].read_bytes()[:700])
    (folder / "note.txt").write_text("Secretname was here")
    (folder / "empty.dcm").touch()
    return folder


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key for pseudonyms."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("5a" * 32)
    path.chmod(0o600)
    return path
