"""A real PACS with a few studies: Orthanc on ports of its own, for as long as the tests run."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pynetdicom import AE, build_context, evt

from headct.pacs.association import with_every_answer, without_delay
from headct.phantom.decoys import HeadSeries
from headct.phantom.plan import plan_studies
from headct.phantom.profile import PhantomPreset
from headct.phantom.study import rendered_series

ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGINS = Path("/usr/share/orthanc/plugins")
N_STUDIES = 3
ROOT_UID = "1.2.826.0.1.3680043.8.498.88"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class TestPacs:
    """Where Orthanc is, and where it sends by C-MOVE."""

    http: int
    dicom: int
    move: int

    __test__ = False

    @property
    def web(self) -> str:
        return f"dicomweb://127.0.0.1:{self.http}/dicom-web"

    @property
    def classic(self) -> str:
        return f"dicom://ORTHANC@127.0.0.1:{self.dicom}"

    @property
    def listen(self) -> str:
        return f"HEADCT@127.0.0.1:{self.move}"


def study_uid(n: int) -> str:
    return f"{ROOT_UID}.{n}.1"


def _variant(series: HeadSeries, n: int, syntax: str) -> HeadSeries:
    noise = np.random.default_rng([6, n]).integers(-3, 4, series.hu.shape)
    header = replace(
        series.header,
        patient_name=f"Secretname^Patient{n}",
        patient_id=f"SECRETID{n}",
        study_uid=study_uid(n),
        series_uid=f"{ROOT_UID}.{n}.2",
        accession=f"SECRETACC{n}",
        institution="Secret Hospital",
    )
    hu = np.clip(series.hu + noise, -1024, 3071).astype(np.int16)
    return replace(series, hu=hu, header=header, transfer_syntax=syntax)


@pytest.fixture(scope="session")
def pacs_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies with a head CT each (one compressed); the first has a report and an MR too."""
    import pydicom

    preset = PhantomPreset(n_train=1, max_matrix=64, min_slice_mm=6)
    series = rendered_series(preset, plan_studies(preset)[0])[0]
    folder = tmp_path_factory.mktemp("pacs-files")
    for n in range(N_STUDIES):
        syntax = "jpeg-lossless" if n == 1 else "explicit"
        for z, data in enumerate(_variant(series, n, syntax).files()):
            (folder / f"{n}-{z:03d}.dcm").write_bytes(data)
    for n, modality, kind in ((8, "MR", "4"), (9, "SR", "88.11")):
        other = pydicom.dcmread(folder / "0-000.dcm")
        other.Modality, other.SeriesInstanceUID = modality, f"{ROOT_UID}.0.{n}"
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.0.{n}.1"
        other.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{kind}"
        other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
        if modality == "SR":
            del other.PixelData, other.Rows, other.Columns
        other.save_as(folder / f"other-{modality}.dcm")
    return folder


@pytest.fixture(scope="session")
def orthanc(pacs_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPacs]:
    """Orthanc with the studies in it; skipped where it is not installed."""
    if not Path(ORTHANC).is_file() or not (PLUGINS / "libOrthancDicomWeb.so").exists():
        pytest.skip("no PACS: apt-get install orthanc orthanc-dicomweb orthanc-gdcm")
    folder = tmp_path_factory.mktemp("orthanc")
    pacs = TestPacs(free_port(), free_port(), free_port())
    config = {
        "Name": "test-pacs",
        "StorageDirectory": "db",
        "IndexDirectory": "db",
        "HttpPort": pacs.http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"reader": "s3cret"},
        "DicomPort": pacs.dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomAlwaysAllowGet": True,
        "DicomModalities": {"headct": ["HEADCT", "127.0.0.1", pacs.move]},
        "Plugins": [str(PLUGINS / f"libOrthanc{name}.so") for name in ("DicomWeb", "Gdcm")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "db").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = (folder / "log").open("w")
    process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait_until_ready(pacs, process, folder)
        _store(pacs, sorted(pacs_files.iterdir()))
        yield pacs
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_until_ready(pacs: TestPacs, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 30
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http}/system")
    request.add_header("Authorization", "Basic cmVhZGVyOnMzY3JldA==")
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"Orthanc did not start: {(folder / 'log').read_text()[-2000:]}")


def _store(pacs: TestPacs, files: list[Path]) -> None:
    import pydicom

    datasets = [pydicom.dcmread(path) for path in files]
    kinds = {(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in datasets}
    contexts = [build_context(kind, [syntax]) for kind, syntax in sorted(kinds)]
    association = AE("STORER").associate(
        "127.0.0.1",
        pacs.dicom,
        contexts=contexts,
        ae_title="ORTHANC",
        evt_handlers=[(evt.EVT_CONN_OPEN, h) for h in (without_delay, with_every_answer)],
    )
    assert association.is_established
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0
    association.release()


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key for pseudonyms."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("6b" * 32)
    path.chmod(0o600)
    return path


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the test PACS."""
    monkeypatch.setenv("HEADCT_PACS_USER", "reader")
    monkeypatch.setenv("HEADCT_PACS_PASSWORD", "s3cret")
