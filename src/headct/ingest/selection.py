"""Several reconstructions of one acquisition: which one is taken, and what becomes of the others.

Thin and thick, soft and bone, tilted and straightened twins show the same head at the same moment.
They never count as independent scans, in whatever order their files come.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from headct.dicom.header import Header
from headct.dicom.kind import is_lossy, is_reformat, is_spectral
from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.reasons import Reason
from headct.dicom.series import StackPlan
from headct.errors import Refusal
from headct.ingest.criteria import Criteria, decide, has_contrast, is_bone
from headct.ingest.series import (
    Found,
    Outcome,
    Settings,
    StudySeries,
    Task,
    early_faults,
    item_of,
    read_scan,
)

SAME_GROUND = 0.5
"""Share of the smaller box that two volumes of one acquisition have in common."""
SAME_MOMENT_S = 2.0
WHOLE_COVER = 0.9
"""A volume that covers less than this share of the longest one comes behind it."""
STEP_DIGITS = 2


@dataclass(frozen=True)
class Candidate:
    """A volume that could be taken.

    Attributes:
        task: the series that it is of.
        plan: its slices.
        scan_id: its pseudonym.
    """

    task: Task
    plan: StackPlan
    scan_id: str

    @property
    def header(self) -> Header:
        """Of its first slice."""
        return self.plan.headers[0]

    @property
    def length_mm(self) -> float:
        """From the first to the last plane."""
        return self.plan.grid.step_mm * len(self.plan.headers)


def process_together(settings: Settings, study: StudySeries) -> Outcome:
    """Read the series of one study and take one volume of each acquisition.

    Items come in the order of the series and of the volumes in them.
    """
    names = Pseudonymizer(settings.key)
    answers: dict[tuple[str, int], Found] = {}
    places: dict[int, tuple[str, int]] = {}
    candidates: list[Candidate] = []
    for task in study.tasks:
        for number, plan in enumerate(task.plans(settings)):
            if isinstance(plan, Refusal) or not is_wanted(settings, plan):
                answers[task.source, number] = read_scan(settings, task.series, plan)
                continue
            scan_id = names.scan_id(plan.headers[0].series_uid, plan.part)
            places[len(candidates)] = (task.source, number)
            candidates.append(Candidate(task, plan, scan_id))
    for group in group_by_acquisition(candidates):
        for i, found in _take(settings, [candidates[i] for i in group], study.stored):
            answers[places[group[i]]] = found
    return _outcome(settings, study, answers)


def _outcome(
    settings: Settings, study: StudySeries, answers: dict[tuple[str, int], Found]
) -> Outcome:
    outcome = Outcome([], [])
    fresh = {task.source for task in study.tasks} - study.known
    for task in study.tasks:
        found = [answer for (source, _), answer in sorted(answers.items()) if source == task.source]
        if task.source in fresh:  # a known series keeps the answer that it has
            outcome.items.extend(item_of(settings, task, answer) for answer, _ in found)
            outcome.scans.extend(scan for _, scan in found if scan is not None)
    return outcome


def _take(
    settings: Settings, group: Sequence[Candidate], stored: Collection[str]
) -> Iterable[tuple[int, Found]]:
    """The index of each candidate of one acquisition and what became of it, the best first."""
    order = ranked(group, settings.criteria)
    order.sort(key=lambda i: group[i].scan_id not in stored)
    first: str | None = None
    for i in order:
        candidate = group[i]
        if candidate.scan_id in stored:
            first = first or candidate.scan_id
            continue
        if first is not None and settings.criteria.keep != "all":
            yield i, (not_chosen(first), None)
            continue
        answer, scan = read_scan(settings, candidate.task.series, candidate.plan)
        if scan is not None:
            first = first or candidate.scan_id
            scan = (scan[0], scan[1] | {"same_scan": first})
        yield i, (answer, scan)


def is_wanted(settings: Settings, plan: StackPlan) -> bool:
    """Whether nothing in the headers refuses a volume."""
    return decide(early_faults(settings, plan), settings.criteria).refused is None


def not_chosen(scan_id: str) -> dict[str, Any]:
    """The answer to a volume whose twin was taken."""
    reason = Reason.NOT_CHOSEN
    message = f"{scan_id} is of the same acquisition"
    return {"status": str(reason.status), "reason": str(reason), "message": message}


def ranked(group: Sequence[Candidate], criteria: Criteria) -> list[int]:
    """Indices, the best first: soft kernel, no contrast, original, whole, then slice distance.

    Among equals the pseudonym decides, so that the order of files never does.
    """
    longest = max(candidate.length_mm for candidate in group)

    def key(i: int) -> tuple[Any, ...]:
        candidate, header = group[i], group[i].header
        step = round(candidate.plan.grid.step_mm, STEP_DIGITS)
        wanted = abs(step - criteria.closest_mm) if criteria.keep == "closest" else step
        return (
            is_bone(header, criteria),
            has_contrast(header, criteria),
            is_spectral(header),
            is_reformat(header),
            is_lossy(header),
            candidate.length_mm < WHOLE_COVER * longest,
            wanted,
            header.slice_thickness_mm or np.inf,
            candidate.scan_id,
        )

    return sorted(range(len(group)), key=key)


def group_by_acquisition(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Indices of the volumes of each acquisition; twins of twins are twins."""
    group_of = list(range(len(candidates)))
    for a, b in product(range(len(candidates)), repeat=2):
        if a < b and same_acquisition(candidates[a].plan, candidates[b].plan):
            old, new = group_of[b], group_of[a]
            group_of = [new if group == old else group for group in group_of]
    groups: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(group_of):
        groups[group].append(i)
    return list(groups.values())


def same_acquisition(a: StackPlan, b: StackPlan) -> bool:
    """Whether two volumes of one study come from the same exposure.

    They do if they share an irradiation event. Where either names none, they do if they cover the
    same ground in one frame of reference and nothing tells them apart: the time of acquisition,
    without times its number and whether contrast was given. What is not known makes them twins.
    """
    events = [_values(plan, "event_uid") for plan in (a, b)]
    if all(events):
        return bool(events[0] & events[1])
    frames = [_values(plan, "frame_of_reference") for plan in (a, b)]
    if all(frames) and not frames[0] & frames[1]:
        return False
    if not _cover_the_same(a, b):
        return False
    times = [_seconds(plan) for plan in (a, b)]
    if times[0] is not None and times[1] is not None:
        (start_a, stop_a), (start_b, stop_b) = times[0], times[1]
        return max(start_a, start_b) - min(stop_a, stop_b) <= SAME_MOMENT_S
    for name in ("acquisition", "temporal_position"):
        numbers = [_values(plan, name) for plan in (a, b)]
        if all(numbers) and not numbers[0] & numbers[1]:
            return False
    return bool(_values(a, "contrast")) == bool(_values(b, "contrast"))


def _values(plan: StackPlan, name: str) -> set[str]:
    return {value for header in plan.headers if (value := getattr(header, name))}


def _cover_the_same(a: StackPlan, b: StackPlan) -> bool:
    boxes = [_box(plan) for plan in (a, b)]
    low = np.maximum(boxes[0][0], boxes[1][0])
    high = np.minimum(boxes[0][1], boxes[1][1])
    shared = float(np.prod((high - low).clip(0)))
    return shared > SAME_GROUND * min(float(np.prod(high_ - low_)) for low_, high_ in boxes)


def _box(plan: StackPlan) -> tuple[Any, Any]:
    """Lowest and highest corner in patient coordinates."""
    header = plan.headers[0]
    ends = [(-0.5, n - 0.5) for n in (header.columns, header.rows, len(plan.headers))]
    corners = np.array([[*corner, 1.0] for corner in product(*ends)]) @ plan.grid.affine_lps.T
    return corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)


def _seconds(plan: StackPlan) -> tuple[float, float] | None:
    """First and last moment of acquisition; None where a slice does not say it."""
    found = [_moment(header) for header in plan.headers]
    known = [moment for moment in found if moment is not None]
    return (min(known), max(known)) if len(known) == len(found) else None


def _moment(header: Header) -> float | None:
    time = header.acquisition_time.replace(":", "")
    found = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d*)?)?", time, re.ASCII)
    if found is None:
        return None
    day = header.acquisition_date
    days = int(day) if re.fullmatch(r"\d{8}", day, re.ASCII) else 0
    return days * 86400.0 + int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3] or 0)


def by_study(tasks: Sequence[Task], fresh: Sequence[Task], owners: Mapping[str, str]) -> list[Task]:
    """Tasks of one study together in one, so that a worker sees all twins.

    Args:
        tasks: all inputs.
        fresh: those that want an answer.
        owners: source of each scan that the store has; these scans stay.
    """
    studies: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        studies[task.study_uid].append(task)
    scans: dict[str, set[str]] = defaultdict(set)
    for scan_id, source in owners.items():
        scans[source].add(scan_id)
    wanted = {task.source for task in fresh}
    found: list[Task] = []
    done: set[str] = set()
    for task in fresh:
        uid = task.study_uid
        if not uid:
            found.append(task)
        elif uid not in done:
            done.add(uid)
            members = [t for t in studies[uid] if t.source in wanted or scans[t.source]]
            known = frozenset(t.source for t in members if t.source not in wanted)
            stored = frozenset(scan for t in members for scan in scans[t.source])
            found.append(replace(task, content=StudySeries(tuple(members), known, stored)))
    return found
