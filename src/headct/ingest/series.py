"""One series -> canonical volumes and item lines: what a worker does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headct.dicom.header import FileOutcome, Header
from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.reasons import Reason, reason_of
from headct.dicom.series import SeriesFiles, StackPlan, plan_stacks, read_stack
from headct.errors import GeometryError, HeadctError, Refusal, place_of
from headct.ingest.bids import NiftiScan
from headct.ingest.criteria import REASONS, Criteria, check_header, decide
from headct.volume.canonical import to_canonical
from headct.volume.check import Fault, check_content
from headct.volume.head import find_head
from headct.volume.nifti import content_hash, read_nifti
from headct.volume.preprocessing import Preprocessing
from headct.volume.read import to_volume
from headct.volume.resample import closest_ras
from headct.volume.volume import Volume

if TYPE_CHECKING:
    from headct.ingest.remote import RemoteStudy

Row = dict[str, Any]
Item = dict[str, Any]
Found = tuple[Item, tuple[NDArray[np.int16], Row] | None]


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know; goes along with each task."""

    preprocessing: Preprocessing
    criteria: Criteria
    key: bytes = field(repr=False)
    site: str | None = None


@dataclass(frozen=True)
class Task:
    """One input: a DICOM series, a NIfTI file, a file that is neither, or a study of a PACS.

    Attributes:
        source: pseudonymous name of the input; the key of its items.
        n_files: an input with another number of files is looked at again.
        place: its file, or the first of them by name, as the user has it; None in a PACS.
    """

    source: str
    content: SeriesFiles | NiftiScan | FileOutcome | RemoteStudy | StudySeries = field(repr=False)
    n_files: int
    place: Path | None = field(default=None, repr=False)

    @property
    def study_uid(self) -> str:
        """Of a DICOM series; empty for other inputs."""
        return self.content.study_uid if isinstance(self.content, SeriesFiles) else ""

    @property
    def series(self) -> SeriesFiles:
        """The DICOM series that this task is about.

        Raises:
            TypeError: it is about something else.
        """
        if not isinstance(self.content, SeriesFiles):
            raise TypeError("the task is about no DICOM series")
        return self.content

    def plans(self, settings: Settings) -> list[StackPlan | Refusal]:
        """The volumes of a DICOM series, or why there is none."""
        return plan_stacks(self.series, min_slices=settings.criteria.min_slices)


@dataclass(frozen=True)
class StudySeries:
    """The series of one study, which are decided together.

    Attributes:
        tasks: one per series.
        known: sources among them that have an answer, and come along for their twins.
        stored: scans of this study that the store has; they stay.
    """

    tasks: tuple[Task, ...]
    known: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Outcome:
    """Item lines of one input, and the scans among them: voxels and manifest row."""

    items: list[Item]
    scans: list[tuple[NDArray[np.int16], Row]]


def process(settings: Settings, task: Task) -> Outcome:
    """Read, check and resample one input; never raises for bad input."""
    content = task.content
    if isinstance(content, SeriesFiles):
        content = StudySeries((task,))
    if isinstance(content, StudySeries):
        from headct.ingest.selection import process_together

        return process_together(settings, content)
    if isinstance(content, FileOutcome):
        answer, scan = _file_answer(content), None
    elif isinstance(content, NiftiScan):
        answer, scan = _unharmed(lambda: _nifti(settings, content))
    else:
        from headct.ingest.remote import process_study

        return process_study(settings, task, content)
    return Outcome([item_of(settings, task, answer)], [] if scan is None else [scan])


def lost(settings: Settings, task: Task) -> Outcome:
    """The outcome of an input whose worker died on it."""
    message = "the process that read it was killed or ran out of memory"
    content = task.content
    tasks: tuple[Task, ...] = (task,)
    if isinstance(content, StudySeries):
        tasks = tuple(t for t in content.tasks if t.source not in content.known)
    answer = _refused((Reason.UNREADABLE, message))
    return Outcome([item_of(settings, each, answer) for each in tasks], [])


def item_of(settings: Settings, task: Task, answer: Item) -> Item:
    """The whole line of an input from what was answered."""
    series, study = None, None
    if isinstance(task.content, SeriesFiles):
        names, content = Pseudonymizer(settings.key), task.content
        series = names.series_id(content.series_uid) if content.series_uid else None
        study = names.study_id(content.study_uid) if content.study_uid else None
    item: Item = {
        "source": task.source,
        "series": series,
        "study": study,
        "status": "",
        "reason": None,
        "message": "",
        "scan_id": None,
        "flags": [],
        "n_files": task.n_files,
    }
    return item | answer


def _file_answer(outcome: FileOutcome) -> Item:
    message = outcome.message or outcome.reason.meaning
    return {
        "status": str(outcome.reason.status),
        "reason": str(outcome.reason),
        "message": message,
    }


def _refused(fault: Fault) -> Item:
    reason, message = fault
    return {"status": "refused", "reason": str(reason), "message": message or reason.meaning}


def early_faults(settings: Settings, plan: StackPlan) -> list[Fault]:
    """What the headers of a volume say against it."""
    flags = [(flag, "") for flag in plan.flags]
    return flags + check_header(plan.headers, plan.grid.step_mm, settings.criteria)


def read_scan(settings: Settings, series: SeriesFiles, plan: StackPlan | Refusal) -> Found:
    """Read a planned volume, look at it, bring it to the grid; or say why not."""
    if isinstance(plan, Refusal):
        return _refused((reason_of(plan), plan.message)), None
    return _unharmed(lambda: _read_scan(settings, series, plan))


def _unharmed(read: Callable[[], Found]) -> Found:
    """What `read` found; where headct itself fails on a scan, that one is refused, and it is said.

    Raises:
        OSError, MemoryError, HeadctError: what is wrong with the machine or the command, not with
            the scan.
    """
    try:
        return read()
    except Refusal as refusal:
        return _refused((reason_of(refusal), refusal.message)), None
    except GeometryError as error:
        return _refused((Reason.BAD_GEOMETRY, error.message)), None
    except (OSError, MemoryError, HeadctError):
        raise
    except Exception as error:  # one scan never stops the others
        message = f"headct failed on it ({place_of(error)}): please report this"
        return _refused((Reason.UNREADABLE, message)), None


def _read_scan(settings: Settings, series: SeriesFiles, plan: StackPlan) -> Found:
    early = early_faults(settings, plan)
    refused = decide(early, settings.criteria).refused
    if refused is not None:
        return _refused(refused), None
    volume = to_volume(read_stack(plan))
    names = Pseudonymizer(settings.key)
    header = plan.headers[0]
    ids = {
        "scan_id": names.scan_id(series.series_uid, plan.part),
        "patient_id": names.patient_id(series.patient_key),
        "study_id": names.study_id(series.study_uid),
        "series_id": names.series_id(series.series_uid),
    }
    return _canonical(settings, volume, ids | _acquisition(header), early)


def _acquisition(header: Header) -> Row:
    return {
        "modality": header.modality or None,
        "manufacturer": header.manufacturer or None,
        "model": header.model or None,
        "kernel": header.kernel_shown or None,
        "kvp": header.kvp,
        "slice_thickness_mm": header.slice_thickness_mm,
        "age_years": header.age_years,
        "sex": header.sex or None,
    }


def _nifti(settings: Settings, scan: NiftiScan) -> Found:
    if scan.header.modality not in ("", "CT"):
        return _refused((Reason.NOT_CT, "the file beside it names another modality")), None
    try:
        volume = read_nifti(scan.path)
        content = content_hash(scan.path)
    except OSError:
        return _refused((Reason.NO_PERMISSION, "")), None
    names = Pseudonymizer(settings.key)
    ids = {
        "scan_id": names.scan_id(content),
        "patient_id": names.patient_id(scan.patient_key or f"file\0{content}"),
        "study_id": names.study_id(scan.study_key or content),
        "series_id": names.series_id(content),
    }
    _, affine = closest_ras(volume.hu, volume.affine_zyx)
    step_mm = float(np.linalg.norm(affine[:3, 0]))
    early = check_header([scan.header], step_mm, settings.criteria)
    return _canonical(settings, volume, ids | _acquisition(scan.header), early)


def _canonical(settings: Settings, volume: Volume, row: Row, early: Iterable[Fault]) -> Found:
    """Look at the content, decide, resample; here a defacing stage has its place."""
    hu, affine = closest_ras(volume.hu, volume.affine_zyx)
    head = find_head(hu, affine)
    flagged = [(REASONS[flag], "") for flag in volume.flags]
    faults = _known_once([*early, *flagged, *check_content(hu, head)])
    decision = decide(faults, settings.criteria)
    if decision.refused is not None or head is None:
        return _refused(decision.refused or (Reason.NOT_HEAD, "")), None
    canonical = to_canonical(volume, settings.preprocessing, head)
    late = [(REASONS[flag], "") for flag in canonical.flags if flag not in volume.flags]
    decision = decide([*faults, *late], settings.criteria)
    if decision.refused is not None:
        return _refused(decision.refused), None
    flags = [str(reason) for reason, _ in decision.flags]
    row = row | {
        "status": "flagged" if flags else "accepted",
        "flags": flags,
        "site": settings.site,
        "spacing_mm_zyx": volume.spacing_mm_zyx,
        "shape_zyx": volume.shape_zyx,
        "n_slices": hu.shape[0],
        "affine_zyx": canonical.affine_zyx,
        "provenance": json.dumps(canonical.provenance),
        "same_scan": row["scan_id"],
        "criteria": settings.criteria.hash,
    }
    answer: Item = {"status": row["status"], "scan_id": row["scan_id"], "flags": flags}
    if flags:
        reason, message = decision.flags[0]
        answer |= {"reason": str(reason), "message": message or reason.meaning}
    return answer, (canonical.hu, row)


def _known_once(faults: list[Fault]) -> list[Fault]:
    """Without a suspicion that the header confirms."""
    told = any(reason == Reason.CONTRAST for reason, _ in faults)
    return [f for f in faults if not (told and f[0] == Reason.SUSPECT_CONTRAST)]
