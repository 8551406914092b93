"""`headct ingest`: folders of anything -> a store, with an answer for every input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headct.config import Config, to_toml
from headct.dicom.index import Index, index_paths
from headct.dicom.pseudonym import Pseudonymizer, key_path, load_key
from headct.dicom.reasons import Reason, Status
from headct.dicom.spool import spooling
from headct.engine.choice import Engine
from headct.errors import UsageError
from headct.ingest.bids import nifti_scans
from headct.ingest.criteria import Criteria
from headct.ingest.keyed import Keyed
from headct.ingest.selection import by_study
from headct.ingest.series import Item, Outcome, Settings, Task, lost
from headct.ingest.summary import write_summary
from headct.ingest.worklist import Remote, remote_tasks, until_gone, with_known
from headct.progress import tracking
from headct.run import write_run_record
from headct.store.layout import LOCK
from headct.store.lock import require_free
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing
from headct.volume.stretched import require_hu

CONFIG = "config.toml"


class IngestConfig(Config):
    """What a store was made with; a store keeps to one such configuration."""

    preprocessing: Preprocessing
    criteria: Criteria


@dataclass
class Tally:
    """Counts of items: seen = accepted + flagged + refused + skipped, always.

    Attributes:
        statuses: items by status.
        reasons: items by (status, reason); accepted ones have the reason "".
        n_known: items that an earlier run had recorded.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    n_known: int = 0

    def count(self, item: Item) -> None:
        """Count one item."""
        self.statuses[item["status"]] += 1
        self.reasons[item["status"], item["reason"] or ""] += 1

    def discount(self, item: Item) -> None:
        """Take back an item that is replaced."""
        self.statuses[item["status"]] -= 1
        self.reasons[item["status"], item["reason"] or ""] -= 1
        self.reasons += Counter()  # without those that are zero now
        self.n_known -= 1

    @property
    def n_seen(self) -> int:
        """All items."""
        return self.statuses.total()

    def __str__(self) -> str:
        return ", ".join(f"{self.statuses[status]} {status}" for status in Status)


def ingest(
    sources: Sequence[Path],
    out: Path,
    preprocessing: Preprocessing,
    criteria: Criteria | None = None,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    key_file: Path | None = None,
    site: str | None = None,
    work: Path | None = None,
    remote: Remote | None = None,
) -> Tally:
    """Turn folders and files into a store; what the store has already is not read again.

    The scans lie in the order of their pseudonymous names, so that neither the order of the files
    nor the number of workers nor the engine changes the store. Stopped at any moment, the same call
    goes on.

    Args:
        sources: folders of any layout, DICOM files, NIfTI files, zip and tar archives of these.
        out: the store; made, or added to.
        preprocessing: the canonical grid.
        criteria: the rule of what is taken; None for the defaults.
        jobs: processes; None for all cores, 0 to work in this process.
        engine: where the work is done; None for `jobs` processes of this machine.
        key_file: the key of the pseudonyms; see `load_key`.
        site: name of the hospital, kept in the manifest.
        work: folder for what archives hold, a PACS sends and jobs are told, for the while; None
            for the system's own for temporary files.
        remote: studies of a PACS, to be taken as well.

    Returns:
        Counts over all items of the store, earlier runs included.

    Raises:
        UsageError: a source is missing or holds no DICOM and no NIfTI file, or the store was made
            with other criteria.
        StoreError: another writer is at work, or the store is damaged.
        MismatchError: the store was made with another preprocessing.
        HeadctError: the PACS is not there, or has gone.
    """
    config = IngestConfig(preprocessing=preprocessing, criteria=criteria or Criteria())
    settings = Settings(preprocessing, config.criteria, load_key(key_file), site)
    names = Pseudonymizer(settings.key)
    require_hu(preprocessing)
    engine = engine or Engine(jobs=jobs)
    engine.check()
    require_free(out / LOCK)
    with (
        spooling(work, names.source_id(out.absolute())) as spool,
        remote_tasks(remote, names, spool, engine.slots) as studies,
    ):
        index = index_paths(sources, spool=spool, jobs=engine.local_jobs)
        is_spooled = engine.is_away and bool(index.places or studies)
        if work is None and (engine.talks_by_files or is_spooled):
            raise UsageError(
                "what is unpacked, fetched or told to jobs must lie where all machines see it",
                remedy="give --work a private folder on a shared disk",
            )
        tasks = list_tasks(index, names) if sources else []
        tasks += studies
        function = Keyed(settings, key_path(key_file))
        run = partial(engine.run_in_order, function, folder=spool, lost=partial(lost, settings))
        with StoreWriter(out, preprocessing) as writer:
            _require_same_criteria(out, config)
            tally = Tally()
            _run(tasks, run, writer, tally)
    write_summary(out, config.criteria)
    return tally


def list_tasks(index: Index, names: Pseudonymizer) -> list[Task]:
    """One task per input, in the order of pseudonymous names: loose files, then series.

    Raises:
        UsageError: there is nothing that could be a scan.
    """
    readable = [o for o in index.outcomes if o.reason.status == Status.REFUSED]
    if not index.series and not index.nifti and not _could_be_scans(o.reason for o in readable):
        raise UsageError(
            f"no DICOM and no NIfTI file among {index.n_files} files",
            remedy="give the folder that holds the scans, and see that you may read it",
        )
    files = [Task(names.source_id(o.path.absolute()), o, 1, o.path) for o in index.outcomes]
    places = [(scan, index.place(scan.path)) for scan in nifti_scans(index)]
    scans = [Task(names.source_id(place.absolute()), scan, 1, place) for scan, place in places]
    for series in index.series:
        uid = series.series_uid
        path = min(index.place(header.path) for header in series.headers)
        source = names.series_id(uid) if uid else names.source_id(path.absolute())
        scans.append(Task(source, series, series.n_files, path))
    return sorted(files, key=lambda t: t.source) + sorted(scans, key=lambda t: t.source)


def _could_be_scans(reasons: Iterable[Reason]) -> bool:
    return any(reason not in (Reason.NO_PERMISSION, Reason.EMPTY_FILE) for reason in reasons)


def _require_same_criteria(out: Path, config: IngestConfig) -> None:
    """Record the configuration of a new store; an old one must have the same."""
    path = out / CONFIG
    if not path.exists():
        write_run_record(out, config, seed=None, verb="ingest")
    elif path.read_text(encoding="utf-8") != to_toml(config):
        raise UsageError(
            "the store was made with other criteria",
            remedy=f"use those in its {CONFIG}, or ingest into a new store",
        )


def _run(
    tasks: Sequence[Task],
    run: Callable[[Sequence[Task]], Iterator[Outcome]],
    writer: StoreWriter,
    tally: Tally,
) -> None:
    answered = {item["source"]: item for item in writer.items()}
    tasks, failed = with_known(tasks, writer.items())
    fresh = [task for task in tasks if _is_fresh(task, answered.get(task.source))]
    stale = ({task.source for task in fresh} | failed) & answered.keys()
    if stale:
        writer.forget(stale)
    owners: dict[str, str] = {}
    for item in writer.items():
        tally.count(item)
        if item["scan_id"] is not None:
            owners.setdefault(item["scan_id"], item["source"])
    tally.n_known = tally.n_seen
    fresh = by_study(tasks, fresh, owners)
    with tracking("ingest", total=len(fresh), unit="series and files") as tracker:
        for outcome in until_gone(run(fresh)):
            items = [once(item, owners) for item in outcome.items]
            again = {item["source"] for item in items} & answered.keys() - stale
            if again:
                _forget(again, writer, tally)
            writer.add(items, outcome.scans)
            for item in items:
                tally.count(item)
            tracker.advance(1, str(tally))


def _forget(sources: set[str], writer: StoreWriter, tally: Tally) -> None:
    """Take out the lines of inputs whose new answer is here: a PACS had more images by now."""
    for item in writer.items():
        if item["source"] in sources:
            tally.discount(item)
    writer.forget(sources)


def _is_fresh(task: Task, answer: Item | None) -> bool:
    """Whether an input has no answer yet, or was not taken and has other files now."""
    if answer is None:
        return True
    return answer["scan_id"] is None and answer["n_files"] != task.n_files


def once(item: Item, owners: dict[str, str]) -> Item:
    """The item; a scan that came from another input before is skipped as its twin."""
    scan_id, source = item["scan_id"], item["source"]
    if scan_id is None or owners.setdefault(scan_id, source) == source:
        return item
    message = "the same image as another input"
    changes = {"status": "skipped", "reason": str(Reason.TWIN), "message": message, "flags": []}
    return item | changes
