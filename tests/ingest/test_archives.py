"""An archive file gives the same store as the folder that it holds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from headct.errors import UsageError
from headct.ingest.pipeline import ingest
from headct.store.store import open_store
from headct.volume.nifti import write_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.read import read_series

DEMO = PRESETS["demo"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, to look into."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def scans_of(store: Path) -> dict[str, str]:
    table = open_store(store).manifest
    return dict(zip(table["scan_id"].to_pylist(), table["hu_sha256"].to_pylist(), strict=True))


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_file_gives_the_store_of_its_folder(
    archive: Path, key_file: Path, tmp_path: Path, temporary: Path, kind: str
) -> None:
    folder = shutil.copytree(archive, tmp_path / "archive")
    write_nifti(folder / "more" / "a.nii.gz", read_series(archive / "Secretname_Patient1"))
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), kind, folder))
    tally = ingest([folder], tmp_path / "folder", DEMO, jobs=0, key_file=key_file)
    for _ in range(2):
        again = ingest([packed], tmp_path / "store", DEMO, jobs=0, key_file=key_file)
        assert again.reasons == tally.reasons
    assert again.n_known == again.n_seen
    assert scans_of(tmp_path / "store") == scans_of(tmp_path / "folder")
    assert not list(temporary.iterdir())
    for path in (tmp_path / "store").rglob("*.json*"):
        assert "secret" not in path.read_text().lower()


def test_the_work_folder_is_left_as_it_was_after_an_error(
    archive: Path, key_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "note.txt").write_text("x")
    shutil.make_archive(str(tmp_path / "in" / "a"), "zip", tmp_path, "note.txt")
    with pytest.raises(UsageError, match="no DICOM and no NIfTI"):
        ingest(
            [tmp_path / "in"],
            tmp_path / "store",
            DEMO,
            jobs=0,
            key_file=key_file,
            work=tmp_path / "work",
        )
    assert not list((tmp_path / "work").iterdir())
