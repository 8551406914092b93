"""From a query or a list to one task per study of a PACS; what an earlier run has done is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.reasons import Reason
from headct.errors import HeadctError, UsageError
from headct.ingest.remote import GONE, INCOMING, RemoteStudy
from headct.ingest.series import Item, Outcome, Task
from headct.pacs.address import Pacs
from headct.pacs.connection import Connection, TransferError, connect, patiently
from headct.pacs.wanted import Query, StudyKey
from headct.progress import tracking

GIVE_UP_AFTER = 5


@dataclass(frozen=True)
class Remote:
    """What is wanted from which PACS.

    Attributes:
        studies: the list of studies; None takes all that the query finds.
    """

    pacs: Pacs
    query: Query
    studies: Sequence[StudyKey] | None = None


@contextmanager
def remote_tasks(
    remote: Remote | None, names: Pseudonymizer, spool: Path, jobs: int
) -> Iterator[list[Task]]:
    """One task per study, in the order of pseudonyms; a receiver runs while the block does.

    Args:
        remote: None for no PACS, and no tasks.
        names: the pseudonyms.
        spool: private folder for what is fetched.
        jobs: processes that will share the limit of images a second.

    Raises:
        HeadctError: the PACS is not there, refuses us or the question, or our port is taken.
        UsageError: nothing matches the query.
    """
    if remote is None:
        yield []
        return
    limit = remote.pacs.images_per_s
    pacs = replace(remote.pacs, images_per_s=limit / max(jobs, 1) if limit else None)
    (spool / INCOMING).mkdir(mode=0o700)
    connection = connect(pacs)
    try:
        connection.check()
        found = _list_studies(connection, remote)
    except TransferError as error:
        raise HeadctError(
            f"the PACS could not list the studies: {error}",
            code="pacs-query",
            remedy="ask for less at once with --dates, or give a list with --studies",
        ) from error
    finally:
        connection.close()
    tasks = {}
    for uid, accession in found:
        source = names.study_id(uid) if uid else names.source_id(f"accession\0{accession}")
        tasks[source] = Task(source, RemoteStudy(pacs, remote.query, uid, spool), -1)
    with _receiver(remote.pacs, names, spool):
        yield [tasks[source] for source in sorted(tasks)]


def _receiver(pacs: Pacs, names: Pseudonymizer, spool: Path) -> AbstractContextManager[None]:
    if pacs.listen is None:
        return nullcontext()
    from headct.pacs.receiver import receiving

    return receiving(pacs.listen, spool / INCOMING, names.series_id, pacs.images_per_s)


def _list_studies(connection: Connection, remote: Remote) -> list[tuple[str, str]]:
    """(StudyInstanceUID, accession number); no UID where the PACS has none for the number."""

    def ask(keys: dict[str, str]) -> list[str]:
        return patiently(remote.pacs.attempts, lambda: connection.find_studies(keys))

    found: list[tuple[str, str]] = []
    if remote.studies is None:
        query = remote.query
        keys = {"ModalitiesInStudy": query.modality, "StudyDescription": query.description}
        keys = {name: value for name, value in keys.items() if value}
        days = list(query.days())
        with tracking("query", total=len(days), unit="questions") as tracker:
            for day in days:
                found += [(uid, "") for uid in ask(keys | ({"StudyDate": day} if day else {}))]
                tracker.advance(1, f"{len(found)} studies")
        if not found:
            raise UsageError("no study of the PACS matches the query", remedy="ask for more")
        return found
    with tracking("list", total=len(remote.studies), unit="studies") as tracker:
        for key in remote.studies:
            uids = [key.uid] if key.uid else ask({"AccessionNumber": key.accession})
            found += [(uid, key.accession) for uid in uids or [""]]
            tracker.advance()
    return found


def with_known(tasks: Sequence[Task], items: Iterable[Item]) -> tuple[list[Task], set[str]]:
    """Tasks that know which of their series have an answer, and the answers to be forgotten.

    What could not be transferred is no answer: it is asked for again.
    """
    remote = {task.source for task in tasks if isinstance(task.content, RemoteStudy)}
    known: dict[str, dict[str, int | None]] = defaultdict(dict)
    failed = set()
    for item in items:
        study, source = item["study"], item["source"]
        if study not in remote:
            continue
        if item["reason"] in (Reason.TRANSFER_FAILED, Reason.NOT_ON_PACS):
            failed.add(source)
        elif item["scan_id"] is not None or known[study].get(source, 0) is None:
            known[study][source] = None
        else:
            known[study][source] = item["n_files"]
    return [
        replace(task, content=replace(task.content, known=known[task.source]))
        if isinstance(task.content, RemoteStudy)
        else task
        for task in tasks
    ], failed


def until_gone(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The outcomes, until several studies in a row failed because the PACS does not answer.

    Raises:
        HeadctError: it is of no use to go on through the list.
    """
    n_gone = 0
    for outcome in outcomes:
        is_gone = any(item["message"] == GONE for item in outcome.items)
        n_gone = n_gone + 1 if is_gone else 0
        yield outcome
        if n_gone >= GIVE_UP_AFTER:
            raise HeadctError(
                f"{GONE} for {n_gone} studies in a row",
                code="pacs-gone",
                remedy="when it is there again, give the same command: it goes on",
            )
