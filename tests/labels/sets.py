"""What the tests of labels write and run: invented patients, public sets at the size of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from headct.cli.app import app
from headct.errors import LabelError
from headct.ingest.criteria import Criteria
from headct.ingest.pipeline import ingest
from headct.phantom.decoys import HeadSeries
from headct.store.store import Store, open_store
from headct.volume.preprocessing import PRESETS

KEY = bytes.fromhex("5a" * 32)
UID = "1.2.826.0.1.3680043.8.498.99"
TOKENS = ("Secret", "SECRET", UID, "CQ500-CT", "ID_")
"""Parts of identifying values; none may be in what headct writes."""


def variant(series: HeadSeries, patient: str, study: int, number: int) -> HeadSeries:
    """The head again, with other noise and other names."""
    noise = np.random.default_rng([study, number]).integers(-3, 4, series.hu.shape)
    header = replace(
        series.header,
        patient_name=f"Secretname^{patient}",
        patient_id=patient,
        study_uid=f"{UID}.{study}",
        series_uid=f"{UID}.{study}.{number}",
        accession=f"SECRET{study}",
    )
    hu = np.clip(series.hu + noise, -1024, 3071).astype(np.int16)
    return replace(series, hu=hu, header=header)


def write_slices(folder: Path, series: HeadSeries, name: Callable[[int], str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(series.files()):
        (folder / name(number)).write_bytes(data)


def store_of(source: Path, out: Path, key_file: Path) -> Store:
    every = Criteria(keep="all")
    ingest([source], out, PRESETS["demo"], jobs=0, key_file=key_file, criteria=every)
    return open_store(out)


def run(*arguments: object) -> Result:
    """`headct labels ARGUMENTS`; errors are raised."""
    words = ["labels", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def fault(match: str, call: Callable[[], object]) -> str:
    """The message of the LabelError that a call ends in."""
    with pytest.raises(LabelError, match=match) as caught:
        call()
    return f"{caught.value} {caught.value.remedy}"


def write_csv(path: Path, header: str, rows: Iterable[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def require_no_identifiers(*texts: str) -> None:
    for text in texts:
        for token in TOKENS:
            assert token not in text
