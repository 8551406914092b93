"""The classic DICOM network protocol: C-FIND to ask, C-GET or C-MOVE to fetch."""

from __future__ import annotations

import hashlib
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, Association, build_context, build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as Find,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as Get,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as Move,
)

from headct.errors import HeadctError
from headct.pacs.address import Pacs
from headct.pacs.association import with_every_answer, without_delay
from headct.pacs.connection import SeriesRecord, Throttle, TransferError

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
PACKED = [
    *(DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless),
    *(JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless),
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000),
]
CT_CLASSES = [CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage]
CAPTURES = [
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
]
STORED = [(kind, [PLAIN, *([s] for s in PACKED)]) for kind in CT_CLASSES]
STORED += [(kind, [PLAIN, [RLELossless], [JPEGBaseline8Bit], [JPEG2000]]) for kind in CAPTURES]
"""What a CT series can hold. A context for each encoding, so that the PACS need not re-encode."""

SERIES_FIELDS = (
    *("SeriesInstanceUID", "Modality", "BodyPartExamined"),
    "NumberOfSeriesRelatedInstances",
)
PENDING = (0xFF00, 0xFF01)
SUCCESS, NOT_ASKED_FOR, NO_SPACE = 0x0000, 0x0124, 0xA700


class Dimse:
    """A PACS by its title, host and port; one association, opened at need and after a loss."""

    def __init__(self, pacs: Pacs, incoming: Path | None) -> None:
        self.pacs, self.incoming = pacs, incoming
        self.throttle = Throttle(pacs.images_per_s)
        self.folder: Path | None = None
        self.full: OSError | None = None
        self.ae = AE(pacs.listen.aet if pacs.listen else pacs.calling)
        self.ae.maximum_pdu_size = 0
        self.ae.connection_timeout = min(pacs.timeout_s, 20.0)
        self.ae.acse_timeout = min(pacs.timeout_s, 30.0)
        self.ae.dimse_timeout = self.ae.network_timeout = pacs.timeout_s
        self._association: Association | None = None

    def check(self) -> None:
        """Associate.

        Raises:
            HeadctError: no answer, or a refusal.
        """
        try:
            _require_open_port(self.pacs.host, self.pacs.port, self.ae.connection_timeout)
            self._associated()
        except TransferError as error:
            raise HeadctError(
                f"the PACS does not answer: {error}",
                code="pacs-unreachable",
                remedy="check host, port and both AE titles; the PACS must know ours",
            ) from error

    def find_studies(self, keys: dict[str, str]) -> list[str]:
        """See `Connection`."""
        answers = self._find("STUDY", {"StudyInstanceUID": ""} | keys)
        return list(dict.fromkeys(_text(a, "StudyInstanceUID") for a in answers))

    def find_series(self, study_uid: str) -> list[SeriesRecord]:
        """See `Connection`."""
        keys = {"StudyInstanceUID": study_uid} | dict.fromkeys(SERIES_FIELDS, "")
        records = {}
        for answer in self._find("SERIES", keys):
            uid, modality, part, n_images = (_text(answer, name) for name in SERIES_FIELDS)
            n = int(n_images) if n_images.isdecimal() else None
            records[uid] = SeriesRecord(uid, modality.upper(), part.upper(), n)
        return [records[uid] for uid in sorted(records) if uid]

    def fetch(self, study_uid: str, series: SeriesRecord, folder: Path) -> None:
        """See `Connection`; with a receiver, `folder` must be where it puts this series."""
        wanted = _identifier("SERIES", {"StudyInstanceUID": study_uid})
        wanted.SeriesInstanceUID = series.uid
        self.folder, self.full = folder, None
        association = self._associated()
        if self.pacs.listen is None:
            answers = association.send_c_get(wanted, Get)
        else:
            answers = association.send_c_move(wanted, self.pacs.listen.aet, Move)
        n_done = self._follow(answers)
        if self.full is not None:
            raise self.full
        if self.pacs.listen is not None:
            _wait_for_files(folder, n_done, self.pacs.timeout_s)

    def close(self) -> None:
        """Release the association."""
        if self._association is not None and self._association.is_established:
            self._association.release()
        self._association = None

    def _associated(self) -> Association:
        if self._association is not None and self._association.is_established:
            return self._association
        contexts = [build_context(Find, PLAIN)]
        roles = []
        if self.pacs.listen is None:
            contexts.append(build_context(Get, PLAIN))
            contexts += [
                build_context(k, syntaxes) for k, several in STORED for syntaxes in several
            ]
            roles = [build_role(kind, scp_role=True) for kind, _ in STORED]
        else:
            contexts.append(build_context(Move, PLAIN))
        opened: list[evt.Event] = []
        association = self.ae.associate(
            self.pacs.host,
            self.pacs.port,
            contexts=contexts,
            ae_title=self.pacs.called,
            ext_neg=roles,
            evt_handlers=[
                (evt.EVT_C_STORE, self._keep),
                (evt.EVT_CONN_OPEN, without_delay),
                (evt.EVT_CONN_OPEN, with_every_answer),
                (evt.EVT_CONN_OPEN, opened.append),
            ],
        )
        if association.is_rejected:
            raise TransferError("it rejects our AE title, or does not have the one we call")
        if not association.is_established:
            # some say no by hanging up, and a hang-up may overtake the no
            told = "it hangs up; it may not know our AE title" if opened else "no connection"
            raise TransferError(told, gone=True)
        self._association = association
        return association

    def _find(self, level: str, keys: dict[str, str]) -> list[Dataset]:
        """All answers.

        Raises:
            TransferError: the connection was lost, or the PACS gave up, before the last answer.
        """
        found = []
        association = self._associated()
        # a value of the PACS that breaks a rule would be quoted in a warning
        with warnings.catch_warnings(), pydicom_config.disable_value_validation():
            warnings.simplefilter("ignore")
            for status, answer in association.send_c_find(_identifier(level, keys), Find):
                code = self._code(status)
                if code in PENDING:
                    found.append(answer)
                elif code != SUCCESS:
                    raise TransferError(f"the PACS refused the question (status 0x{code:04X})")
        return [answer for answer in found if answer is not None]

    def _follow(self, answers: Iterator[tuple[Dataset, Any]]) -> int:
        """Read the answers to C-GET or C-MOVE to the end; images that the PACS says it sent."""
        n_done = 0
        for status, _ in answers:
            code = self._code(status)
            n_done = max(n_done, status.get("NumberOfCompletedSuboperations") or 0)
            if code in PENDING:
                continue
            n_failed = status.get("NumberOfFailedSuboperations") or 0
            if code != SUCCESS or n_failed:
                raise TransferError(_explain(code, n_failed))
        return n_done

    def _code(self, status: Dataset) -> int:
        if "Status" not in status:
            self.close()
            raise TransferError("the connection was lost on the way", gone=True)
        return int(status.Status)

    def _keep(self, event: evt.Event) -> int:
        """Write one image that comes by C-GET; runs in the thread of the association."""
        self.throttle.wait()
        if self.folder is None:
            return NOT_ASKED_FOR
        try:
            keep_image(event, self.folder)
        except OSError as error:
            self.full = error
            return NO_SPACE
        return SUCCESS


def keep_image(event: evt.Event, folder: Path) -> None:
    """Write an image as it came, undecoded; one that comes twice takes its own place.

    Raises:
        OSError: the disk is full.
    """
    uid = str(event.request.AffectedSOPInstanceUID)
    path = folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.dcm"
    aside = path.with_suffix(".part")
    aside.write_bytes(event.encoded_dataset())
    aside.replace(path)


def _require_open_port(host: str, port: int, timeout_s: float | None) -> None:
    """Somebody listens there; pynetdicom would not say why nobody does.

    Raises:
        TransferError: no such host, refused, or no answer.
    """
    try:
        socket.create_connection((host, port), timeout_s).close()
    except socket.gaierror:
        raise TransferError("its host name is not known here", gone=True) from None
    except TimeoutError:
        raise TransferError("no answer from its host", gone=True) from None
    except OSError:
        raise TransferError("nothing listens on its port", gone=True) from None


def _explain(code: int, n_failed: int) -> str:
    if code == 0xA801:
        return "the PACS does not know our AE title as a destination"
    failed = f", {n_failed} images failed" if n_failed else ""
    return f"the PACS ended with status 0x{code:04X}{failed}"


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        identifier.SpecificCharacterSet = "ISO_IR 192"
    with pydicom_config.disable_value_validation():  # UIDs of old scanners break the rules
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
    return identifier


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword, None)
    return "" if value is None else str(value).strip(" \0")


def _wait_for_files(folder: Path, n_files: int, timeout_s: float) -> None:
    """Some PACS end C-MOVE before the receiver has written the last image."""
    end = time.monotonic() + min(timeout_s, 10.0)
    while len(list(folder.glob("*.dcm"))) < n_files and time.monotonic() < end:
        time.sleep(0.05)
