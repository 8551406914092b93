"""A study of a PACS: asked for, fetched into the spool, taken like a folder, and removed again."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from headct.dicom.index import Index, index_paths
from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.reasons import Reason
from headct.errors import HeadctError
from headct.ingest.series import Item, Outcome, Settings, StudySeries, Task, process
from headct.pacs.address import Pacs
from headct.pacs.connection import (
    Connection,
    SeriesRecord,
    TransferError,
    connect,
    patiently,
)
from headct.pacs.wanted import Query

OBJECTS = frozenset({"SR", "PR", "KO", "DOC", "REG", "AU", "PLAN", "FID", "SEG", "RTSTRUCT"})
"""Modalities of series that hold no images from a scanner."""
GONE = "the PACS did not answer"
INCOMING = "incoming"
FREE_BYTES = 64 << 20


@dataclass(frozen=True)
class RemoteStudy:
    """A study to be fetched by whichever worker gets the task.

    Attributes:
        pacs: where it is.
        query: which of its series are wanted.
        uid: StudyInstanceUID; empty where the PACS has no study of the accession number.
        spool: private folder for the time in between.
        known: sources of this study that have an answer, with their number of files; None for
            those that gave a scan.
    """

    pacs: Pacs
    query: Query
    uid: str = field(repr=False)
    spool: Path = field(repr=False)
    known: Mapping[str, int | None] = field(default_factory=dict)


def process_study(settings: Settings, task: Task, study: RemoteStudy) -> Outcome:
    """Fetch and process the series of a study that have no answer yet.

    A series that did not come whole is refused, never shortened.

    Raises:
        HeadctError: the PACS refuses us, or the disk is full: not the study's fault.
    """
    study_id = task.source
    if not study.uid:
        return Outcome([_item(study_id, None, study_id, Reason.NOT_ON_PACS)], [])
    incoming = study.spool / INCOMING
    connection = connect(study.pacs, incoming)
    folder = Path(mkdtemp(dir=study.spool))
    try:
        records = patiently(study.pacs.attempts, lambda: connection.find_series(study.uid))
        return _Fetch(settings, study, study_id, connection, folder).run(records)
    except TransferError as error:
        message = GONE if error.gone else str(error)
        return Outcome([_item(study_id, None, study_id, Reason.TRANSFER_FAILED, message)], [])
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        raise
    finally:
        connection.close()
        shutil.rmtree(folder, ignore_errors=True)


class _Fetch:
    """The series of one study, one after the other."""

    def __init__(
        self,
        settings: Settings,
        study: RemoteStudy,
        study_id: str,
        connection: Connection,
        folder: Path,
    ) -> None:
        self.settings, self.study, self.study_id = settings, study, study_id
        self.connection, self.folder = connection, folder
        self.names = Pseudonymizer(settings.key)
        self.items: list[Item] = []

    def run(self, records: Sequence[SeriesRecord]) -> Outcome:
        if not records:
            return Outcome([_item(self.study_id, None, self.study_id, Reason.NOT_ON_PACS)], [])
        fetched = []
        for record in records:
            if self._is_known(record):
                continue
            fault = _not_wanted(record, self.study.query)
            if fault is not None:
                self._refuse(record, fault[0], fault[1], record.n_images or 0)
            elif self._fetch(record):
                fetched.append(record)
        return self._process(fetched)

    def _is_known(self, record: SeriesRecord) -> bool:
        known, source = self.study.known, self.names.series_id(record.uid)
        if source not in known:
            return False
        return known[source] in (None, record.n_images) or record.n_images is None

    def _fetch(self, record: SeriesRecord) -> bool:
        """Bring one series; where that fails to the end, it is refused."""
        series_id = self.names.series_id(record.uid)
        by_move = self.study.pacs.listen is not None
        folder = (self.study.spool / INCOMING if by_move else self.folder) / series_id

        def once() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            self.connection.fetch(self.study.uid, record, folder)
            n_files = len(list(folder.glob("*.dcm")))
            if n_files < max(record.n_images or 0, 1):
                of = "" if record.n_images is None else f" of {record.n_images}"
                raise TransferError(f"{n_files}{of} images came")

        try:
            patiently(self.study.pacs.attempts, once)
            if by_move:
                folder.rename(self.folder / series_id)
        except TransferError as error:
            if shutil.disk_usage(self.folder).free < FREE_BYTES:
                raise _disk_full() from None
            message = GONE if error.gone else str(error)
            shutil.rmtree(folder, ignore_errors=True)
            self._refuse(record, Reason.TRANSFER_FAILED, message, 0)
            return False
        return True

    def _process(self, fetched: Sequence[SeriesRecord]) -> Outcome:
        outcome, tasks = Outcome(self.items, []), []
        wanted = {record.uid: record for record in fetched}
        index = index_paths([self.folder])
        for series in index.series:
            source = self.names.series_id(series.series_uid)
            if wanted.pop(series.series_uid, None) is None:
                message = "images of another series came"
                self.items.append(
                    _item(source, source, self.study_id, Reason.TRANSFER_FAILED, message)
                )
                continue
            tasks.append(Task(source, series, series.n_files))
        together = Task(self.study_id, StudySeries(tuple(tasks)), len(tasks))
        part = process(self.settings, together)
        outcome.items.extend(part.items)
        outcome.scans.extend(part.scans)
        for task in _loose_files(index, self.names):
            items = process(self.settings, task).items
            outcome.items.extend(item | {"study": self.study_id} for item in items)
        for record in wanted.values():
            self._refuse(record, Reason.TRANSFER_FAILED, "no image of the series came", 0)
        return outcome

    def _refuse(self, record: SeriesRecord, reason: Reason, message: str, n_files: int) -> None:
        series_id = self.names.series_id(record.uid)
        item = _item(series_id, series_id, self.study_id, reason, message)
        self.items.append(item | {"n_files": n_files})


def _loose_files(index: Index, names: Pseudonymizer) -> Iterator[Task]:
    """Files in no series, named by their content: the path in the spool is another every time."""
    for outcome in index.outcomes:
        content = hashlib.sha256(outcome.path.read_bytes()).hexdigest()
        yield Task(names.source_id(f"pacs\0{content}"), outcome, 1)


def _not_wanted(record: SeriesRecord, query: Query) -> tuple[Reason, str] | None:
    """Why a series is not transferred."""
    if query.modality and record.modality != query.modality:
        if record.modality in OBJECTS:
            return Reason.NOT_IMAGE, "not transferred"
        known = record.modality.isalnum() and len(record.modality) <= 10
        modality = f"modality {record.modality}, " if known else ""
        return Reason.NOT_CT, f"{modality}not transferred"
    if query.body_part and record.body_part not in ("", query.body_part):
        return Reason.OTHER_BODY_PART, "not transferred"
    return None


def _item(source: str, series: str | None, study: str, reason: Reason, message: str = "") -> Item:
    return {
        "source": source,
        "series": series,
        "study": study,
        "status": str(reason.status),
        "reason": str(reason),
        "message": message or reason.meaning,
        "scan_id": None,
        "flags": [],
        "n_files": 0,
    }


def _disk_full() -> HeadctError:
    return HeadctError(
        "the disk of the work folder is full",
        code="work-full",
        remedy="give --work a folder on a larger disk; the same command goes on",
    )
