"""Ingest from a real PACS gives the store that ingest of the same files gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.pacs.conftest import N_STUDIES, ROOT_UID, TestPacs, free_port, study_uid

from headct.errors import HeadctError, UsageError
from headct.ingest.pipeline import Tally, ingest
from headct.ingest.worklist import Remote
from headct.pacs.address import Pacs, parse_address, parse_listen
from headct.pacs.wanted import Query, StudyKey, parse_days
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS

pytestmark = [pytest.mark.xdist_group("orthanc"), pytest.mark.usefixtures("login")]

DEMO = PRESETS["demo"]
ALL = [StudyKey(uid=study_uid(n)) for n in range(N_STUDIES)]
SECRETS = ("secret", ROOT_UID, "reader", "s3cret", "127.0.0.1")


def pacs_of(orthanc: TestPacs, way: str) -> Pacs:
    pacs = parse_address(orthanc.web if way == "dicomweb" else orthanc.classic)
    if way == "move":
        pacs = replace(pacs, listen=parse_listen(orthanc.listen))
    return replace(pacs, timeout_s=20.0, attempts=2)


@pytest.fixture
def fetch(key_file: Path, tmp_path: Path):
    """`fetch(remote, name)`: ingest from the PACS into a store; counts."""

    def run(remote: Remote, name: str = "store", jobs: int = 0) -> Tally:
        return ingest(
            [],
            tmp_path / name,
            DEMO,
            jobs=jobs,
            key_file=key_file,
            work=tmp_path / "work",
            remote=remote,
        )

    return run


def items_of(store: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(store / "items.jsonl"))


def scans_of(store: Path) -> dict[str, str]:
    table = open_store(store).manifest
    return dict(zip(table["scan_id"].to_pylist(), table["hu_sha256"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def folder_store(
    pacs_files: Path, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    ingest([pacs_files], out, DEMO, jobs=0, key_file=key_file)
    return out


@pytest.mark.parametrize("way", ["dicomweb", "get", "move"])
def test_each_way_gives_the_store_of_the_folder(
    orthanc: TestPacs, folder_store: Path, fetch, tmp_path: Path, way: str
) -> None:
    tally = fetch(Remote(pacs_of(orthanc, way), Query(), ALL))
    assert scans_of(tmp_path / "store") == scans_of(folder_store)
    assert len(scans_of(tmp_path / "store")) == N_STUDIES
    states = Counter((i["status"], i["reason"]) for i in items_of(tmp_path / "store"))
    assert states["refused", "not-ct"] == 1
    assert states["skipped", "not-image"] == 1
    assert tally.n_seen == N_STUDIES + 2
    assert not list((tmp_path / "work").iterdir())
    known = fetch(Remote(pacs_of(orthanc, way), Query(), ALL))
    assert known.n_known == known.n_seen == tally.n_seen


def test_a_folder_and_a_pacs_name_a_series_alike(
    orthanc: TestPacs, pacs_files: Path, folder_store: Path, key_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder_store, tmp_path / "store")
    remote = Remote(pacs_of(orthanc, "dicomweb"), Query(), ALL)
    before = scans_of(tmp_path / "store")
    ingest([], tmp_path / "store", DEMO, jobs=0, key_file=key_file, remote=remote)
    assert scans_of(tmp_path / "store") == before


@pytest.mark.parametrize("way", ["dicomweb", "get"])
def test_queries_choose_studies(orthanc: TestPacs, fetch, way: str) -> None:
    pacs = pacs_of(orthanc, way)
    first, last = parse_days("19000101-19000103")
    with pytest.raises(UsageError, match="no study"):
        fetch(Remote(pacs, Query(first_day=first, last_day=last)))
    with pytest.raises(UsageError, match="no study"):
        fetch(Remote(pacs, Query(description="*KNEE*")))
    tally = fetch(Remote(pacs, Query(description="CT*without contrast")))
    assert tally.n_seen == N_STUDIES + 2


@pytest.mark.parametrize("way", ["dicomweb", "get"])
def test_accession_numbers_and_studies_that_are_not_there(
    orthanc: TestPacs, fetch, tmp_path: Path, way: str
) -> None:
    keys = [StudyKey(accession="SECRETACC1"), StudyKey(accession="NO-SUCH")]
    keys += [StudyKey(uid=study_uid(1)), StudyKey(uid="1.2.3.4")]
    tally = fetch(Remote(pacs_of(orthanc, way), Query(), keys))
    assert tally.reasons["refused", "not-on-pacs"] == 2
    assert (tally.n_seen, len(scans_of(tmp_path / "store"))) == (3, 1)
    tally = fetch(Remote(pacs_of(orthanc, way), Query(), keys))
    assert tally.n_seen == 3


def test_a_series_of_another_body_part_is_not_transferred(
    orthanc: TestPacs, fetch, tmp_path: Path
) -> None:
    tally = fetch(Remote(pacs_of(orthanc, "dicomweb"), Query(body_part="KNEE"), ALL[1:]))
    assert tally.reasons == {("refused", "other-body-part"): N_STUDIES - 1}


def headct(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    code = "from headct.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_on_the_way_the_same_command_goes_on(
    orthanc: TestPacs, folder_store: Path, key_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{key.uid}\n" for key in ALL))
    arguments = [
        *("ingest", orthanc.classic, "--studies", tmp_path / "list.txt", "--grid", "demo"),
        *("--out", tmp_path / "store", "--key", key_file, "--work", tmp_path / "work"),
        *("--jobs", 1),
    ]
    slow = headct(*arguments, "--max-rate", 40)
    end = time.monotonic() + 60
    while not list((tmp_path / "work").glob("*/*/*/*.dcm")):
        assert time.monotonic() < end
        assert slow.poll() is None, slow.communicate()
        time.sleep(0.02)
    slow.send_signal(signal.SIGKILL)
    slow.communicate()
    left = list((tmp_path / "work").iterdir())
    assert [path.stat().st_mode & 0o777 for path in left] == [0o700]
    done = headct(*arguments)
    out, errors = done.communicate(timeout=120)
    assert done.returncode == 1, errors  # the MR is refused
    assert scans_of(tmp_path / "store") == scans_of(folder_store)
    assert not list((tmp_path / "work").iterdir())
    shown = out + errors + (tmp_path / "store" / "run.json").read_text()
    shown += json.dumps(items_of(tmp_path / "store"))
    assert not [secret for secret in SECRETS if secret in shown.lower()]


def test_nothing_that_the_store_has_is_fetched_again(
    orthanc: TestPacs, fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headct.pacs.dicomweb import DicomWeb

    fetched = []
    real = DicomWeb.fetch

    def counted(self, study_uid, series, folder):
        fetched.append(series.uid)
        real(self, study_uid, series, folder)

    monkeypatch.setattr(DicomWeb, "fetch", counted)
    pacs = pacs_of(orthanc, "dicomweb")
    fetch(Remote(pacs, Query(), ALL[:1]))
    fetch(Remote(pacs, Query(), ALL))
    fetch(Remote(pacs, Query(), ALL))
    assert len(fetched) == len(set(fetched)) == N_STUDIES


@pytest.mark.parametrize("way", ["dicomweb", "get"])
def test_a_lost_connection_is_tried_again(
    orthanc: TestPacs, fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The first transfer is cut off after three images; the second has all of them."""
    monkeypatch.setattr("headct.pacs.connection.FIRST_PAUSE_S", 0.01)
    cut: dict[str, Any] = {"left": 3}
    if way == "get":
        from headct.pacs import dimse

        real = dimse.keep_image

        def keep(event, folder):
            cut["left"] -= 1
            if cut["left"] == 0:
                cut["socket"] = event.assoc.dul.socket.socket  # pynetdicom leaves it open
                cut["socket"].shutdown(socket.SHUT_RDWR)
            real(event, folder)

        monkeypatch.setattr(dimse, "keep_image", keep)
    else:
        from headct.pacs import dicomweb

        real_parts = dicomweb.write_parts

        def parts(chunks, boundary, new_file):
            if cut.pop("left", None):
                chunks = iter([next(iter(chunks))[:40_000]])
            real_parts(chunks, boundary, new_file)

        monkeypatch.setattr(dicomweb, "write_parts", parts)
    tally = fetch(Remote(pacs_of(orthanc, way), Query(), ALL[1:2]))
    if way == "get":
        cut["socket"].close()
    assert tally.statuses["refused"] == 0
    assert len(scans_of(tmp_path / "store")) == 1


def test_a_study_that_fails_is_recorded_and_tried_again_by_the_next_run(
    orthanc: TestPacs, fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headct.pacs import dicomweb
    from headct.pacs.connection import TransferError

    pacs = replace(pacs_of(orthanc, "dicomweb"), attempts=1)
    real = dicomweb.DicomWeb.fetch

    def failing(self, study, series, folder):
        real(self, study, series, folder)
        if study == study_uid(1):
            raise TransferError("made up")

    with monkeypatch.context() as patch:
        patch.setattr(dicomweb.DicomWeb, "fetch", failing)
        tally = fetch(Remote(pacs, Query(), ALL))
    assert tally.reasons["refused", "transfer-failed"] == 1
    assert len(scans_of(tmp_path / "store")) == N_STUDIES - 1
    tally = fetch(Remote(pacs, Query(), ALL))
    assert tally.reasons["refused", "transfer-failed"] == 0
    assert (tally.n_seen, len(scans_of(tmp_path / "store"))) == (N_STUDIES + 2, N_STUDIES)


def test_wrong_credentials_and_titles_are_said_at_once(
    orthanc: TestPacs, fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADCT_PACS_PASSWORD", "wrong")
    with pytest.raises(HeadctError, match="does not let us in") as error:
        fetch(Remote(pacs_of(orthanc, "dicomweb"), Query(), ALL))
    assert "--token-file" in error.value.remedy
    other = replace(pacs_of(orthanc, "get"), called="SOMEONE")
    with pytest.raises(HeadctError, match="AE title"):
        fetch(Remote(other, Query(), ALL))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("address", ["dicomweb://127.0.0.1:{}/dicom-web", "dicom://A@127.0.0.1:{}"])
def test_a_pacs_that_is_not_there_is_an_error_with_a_remedy(
    fetch, tmp_path: Path, address: str
) -> None:
    pacs = parse_address(address.format(free_port()))
    with pytest.raises(HeadctError, match="does not answer") as error:
        fetch(Remote(pacs, Query(), ALL))
    assert error.value.code == "pacs-unreachable"
    assert "check host, port" in error.value.remedy
    assert not (tmp_path / "store").exists()
