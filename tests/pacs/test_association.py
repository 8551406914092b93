"""No answer is lost on a busy machine, where threads stop and start late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find

from headct.pacs import association
from headct.pacs.address import parse_address
from headct.pacs.connection import TransferError
from headct.pacs.dimse import Dimse

STUDIES = [f"1.2.{n}" for n in range(1, 6)]
LATE_S = 0.03


def answer(event: evt.Event) -> Iterator[tuple[int, Dataset]]:
    for uid in STUDIES:
        found = Dataset()
        found.QueryRetrieveLevel, found.StudyInstanceUID = "STUDY", uid
        yield 0xFF00, found


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dimse]:
    """A PACS in this process that finds five studies; whoever asks it reads late."""
    server = AE("FINDER")
    server.add_supported_context(Find)
    running = server.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)]
    )
    address = parse_address(f"dicom://FINDER@127.0.0.1:{running.server_address[1]}")
    read = DIMSEServiceProvider.get_msg

    def read_late(self: DIMSEServiceProvider, block: bool = False) -> Any:
        time.sleep(2 * LATE_S if block else 0)
        return read(self, block)

    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", read_late)
    dimse = Dimse(replace(address, timeout_s=30.0), None)
    yield dimse
    dimse.close()
    running.shutdown()


class LatePause(association.Pause):
    def wait(self) -> None:
        super().wait()
        time.sleep(LATE_S)


class LateEvent(threading.Event):
    """What pynetdicom has in that place."""

    def __init__(self, serving: threading.Thread) -> None:
        super().__init__()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        time.sleep(LATE_S)
        return done


def test_every_answer_comes(pacs: Dimse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association, "Pause", LatePause)
    for _ in range(3):
        assert pacs.find_studies({}) == STUDIES


def test_without_the_amendment_answers_are_lost(
    pacs: Dimse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, pynetdicom needs the amendment no more."""
    monkeypatch.setattr(association, "Pause", LateEvent)
    pacs.ae.dimse_timeout = 2.0
    for _ in range(20):
        try:
            if pacs.find_studies({}) != STUDIES:
                return
        except TransferError:
            return
    pytest.fail("every answer came")
