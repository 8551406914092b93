"""The receiver for C-MOVE: takes the images that were asked for, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pynetdicom import AE, evt

from headct.dicom.elements import HeaderError, read_elements
from headct.dicom.header import SERIES_UID
from headct.errors import HeadctError
from headct.pacs.address import Listen
from headct.pacs.association import without_delay
from headct.pacs.connection import Throttle
from headct.pacs.dimse import (
    NO_SPACE,
    NOT_ASKED_FOR,
    PACKED,
    PLAIN,
    STORED,
    SUCCESS,
    keep_image,
)

CANNOT_UNDERSTAND = 0xC000


@contextmanager
def receiving(
    listen: Listen, incoming: Path, folder_of: Callable[[str], str], images_per_s: float | None
) -> Iterator[None]:
    """Receive images while the block runs.

    An image is written to `incoming / folder_of(SeriesInstanceUID)` if that folder is there, which
    whoever asks for the series has made before; any other image is refused.

    Raises:
        HeadctError: the port cannot be had.
    """
    throttle = Throttle(images_per_s)

    def keep(event: evt.Event) -> int:
        throttle.wait()
        data = event.encoded_dataset()
        try:
            elements = read_elements(io.BytesIO(data), len(data), frozenset({SERIES_UID}))
        except HeaderError:
            return CANNOT_UNDERSTAND
        uid = elements.values.get(SERIES_UID, b"").decode("latin-1").strip(" \0")
        folder = incoming / folder_of(uid)
        if not folder.is_dir():
            return NOT_ASKED_FOR
        try:
            keep_image(event, folder)
        except OSError:
            return NO_SPACE
        return SUCCESS

    ae = AE(listen.aet)
    ae.maximum_pdu_size = 0
    ae.require_called_aet = True
    for kind, _ in STORED:
        ae.add_supported_context(kind, [*PLAIN, *PACKED])
    handlers = [(evt.EVT_C_STORE, keep), (evt.EVT_CONN_OPEN, without_delay)]
    try:
        server = ae.start_server((listen.host, listen.port), block=False, evt_handlers=handlers)
    except OSError as error:
        raise HeadctError(
            "the receiver for C-MOVE cannot listen on its port",
            code="port-taken",
            remedy="give --listen another port, and tell the PACS",
        ) from error
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()
