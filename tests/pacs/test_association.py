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
    pacs.check()
    for _ in range(5):
        time.sleep(LATE_S / 2)  # the serving thread goes on, and is asked to stop on its way
        assert pacs.find_studies({}) == STUDIES


def test_without_the_amendment_answers_are_lost(
    pacs: Dimse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, pynetdicom needs the amendment no more."""
    monkeypatch.setattr(association, "Pause", LateEvent)
    pacs.ae.dimse_timeout = 2.0
    pacs.check()
    for _ in range(20):
        time.sleep(LATE_S / 2)
        try:
            if pacs.find_studies({}) != STUDIES:
                return
        except TransferError:
            return
    pytest.fail("every answer came")


class Serving(threading.Thread):
    """Goes through a pause again and again, slowly."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pause = association.Pause(self)
        self.rounds, self.ended = 0, False

    def run(self) -> None:
        while not self.ended:
            self.pause.wait()
            time.sleep(0.01)
            self.rounds += 1


def test_a_pause_has_begun_when_clear_returns() -> None:
    serving = Serving()
    serving.start()
    for _ in range(10):
        before = serving.rounds
        while serving.rounds == before:
            time.sleep(0.001)
        serving.pause.clear()
        paused = serving.rounds
        time.sleep(0.03)
        assert serving.rounds == paused
        serving.pause.set()
    serving.ended = True
    serving.join(30)
    assert not serving.is_alive()


@pytest.mark.parametrize("how", ["not-started", "ended", "itself", "opened-meanwhile"])
def test_clear_returns_where_nobody_can_wait(how: str) -> None:
    serving = Serving()
    clear = threading.Thread(target=serving.pause.clear, daemon=True)
    if how == "ended":
        serving.ended = True
        serving.start()
        serving.join(30)
    elif how == "itself":
        serving.run = clear.run  # type: ignore[method-assign]
        clear = serving
    elif how == "opened-meanwhile":
        serving.run = lambda: time.sleep(60)  # type: ignore[method-assign]
        serving.start()
    clear.start()
    if how == "opened-meanwhile":
        time.sleep(0.05)
        assert clear.is_alive()
        serving.pause.set()
    clear.join(30)
    assert not clear.is_alive()
