"""Files that cannot be read: which series is each a slice of, if that can be shown?

A series is refused for a file that it can be shown to have lost. Where several series could have
lost it, none is refused: a lost slice inside a scan shows as a gap between its neighbours, so that
only a lost slice at an end goes unseen, and each of these series is flagged for that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headct.dicom.header import FileOutcome, Header
from headct.dicom.reasons import Reason

LOST = frozenset({Reason.EMPTY_FILE, Reason.TRUNCATED, Reason.UNREADABLE, Reason.NO_PERMISSION})
LOST |= {Reason.NO_TRANSFER_SYNTAX, Reason.ENCRYPTED, Reason.UNSAFE_NAME}
"""What a damaged slice looks like when not even its series can be read."""
SAME_IN_A_SERIES = (
    "study_uid",
    "sop_class",
    "modality",
    "manufacturer",
    "model",
    "body_part",
    "study_description",
    "series_description",
    "protocol",
)
"""A file with another value in one of these is of another series."""
NAMED_ALIKE = 0.5
"""Share of the slices of a series in a folder whose names must have the pattern of the file's."""

Numbers = tuple[int, ...]
Range = tuple[Numbers, Numbers]


@dataclass
class Losses:
    """Damaged files by SeriesInstanceUID.

    Attributes:
        shown: the file is of this series.
        possible: the file may be of this series, or of another.
    """

    shown: dict[str, list[FileOutcome]] = field(default_factory=lambda: defaultdict(list))
    possible: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def find_losses(
    series: Mapping[str, Sequence[Header]],
    outcomes: Iterable[FileOutcome],
    place: Callable[[Path], Path],
) -> Losses:
    """Give every damaged file to the series that it is of.

    What the file said before it broke off goes first: its series UID, or an image UID that another
    file has whole (then nothing is lost). Else it must lie in a folder of the series, be called
    like most of its slices there (digits apart), contradict nothing in its headers, and have a
    number among or next to its numbers.

    Args:
        series: readable images by series UID.
        outcomes: files that are no image; those with a reason in LOST are looked at.
        place: where the user has a file, in a folder or in an archive.
    """
    losses = Losses()
    lost = [outcome for outcome in outcomes if outcome.reason in LOST]
    if not lost:
        return losses
    names = _Names(series, place)
    images = {header.image_uid for headers in series.values() for header in headers}
    for outcome in lost:
        if outcome.series_uid:
            if outcome.series_uid in series:
                losses.shown[outcome.series_uid].append(outcome)
            continue
        partial = outcome.partial
        if partial is not None and partial.image_uid in images - {""}:
            continue
        ranges = names.like(outcome.path)
        if partial is not None:
            ranges = {uid: r for uid, r in ranges.items() if _agree(partial, series[uid][0])}
        found = _nearest(_numbers(outcome.path), ranges)
        if len(found) == 1:
            losses.shown[found[0]].append(outcome)
        for uid in found if len(found) > 1 else ():
            losses.possible[uid] += 1
    return losses


def _agree(partial: Header, header: Header) -> bool:
    """Whether nothing in the readable part of a file speaks against a series."""
    number, known = partial.patient[0], header.patient[0]
    pairs = [(number, known)] + [
        (getattr(partial, n), getattr(header, n)) for n in SAME_IN_A_SERIES
    ]
    return all(found == wanted or not found for found, wanted in pairs)


class _Names:
    """Names of the slices of each series, folder by folder."""

    def __init__(
        self, series: Mapping[str, Sequence[Header]], place: Callable[[Path], Path]
    ) -> None:
        self.numbers: dict[tuple[Path, str], dict[str, list[Numbers]]] = defaultdict(dict)
        self.in_folder: dict[tuple[Path, str], int] = defaultdict(int)
        for uid, headers in series.items():
            for path in {place(header.path) for header in headers}:
                of_series = self.numbers[path.parent, _pattern(path)].setdefault(uid, [])
                of_series.append(_numbers(path))
                self.in_folder[path.parent, uid] += 1

    def like(self, path: Path) -> dict[str, Range]:
        """Series in the folder of a file whose slices are called like it, with their numbers."""
        folder = path.parent
        return {
            uid: (min(known), max(known))
            for uid, known in self.numbers.get((folder, _pattern(path)), {}).items()
            if len(known) >= NAMED_ALIKE * self.in_folder[folder, uid]
        }


def _nearest(numbers: Numbers, ranges: Mapping[str, Range]) -> list[str]:
    """Series that a file of this number can be of.

    Where it lies within the numbers of a series, it is of that one, unless the numbers of others
    overlap them; where it lies between two series, it may be of either.
    """
    near = {uid for uid, (low, high) in ranges.items() if low < numbers < high}
    if not near:
        below = max((high for _, high in ranges.values() if high <= numbers), default=None)
        above = min((low for low, _ in ranges.values() if low >= numbers), default=None)
        near = {uid for uid, (low, high) in ranges.items() if high == below or low == above}
    return [uid for uid in ranges if any(_overlap(ranges[uid], ranges[other]) for other in near)]


def _overlap(a: Range, b: Range) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _pattern(path: Path) -> str:
    """The name with # for numbers."""
    return re.sub(r"\d+", "#", path.name)


def _numbers(path: Path) -> Numbers:
    """The numbers in the name."""
    return tuple(int(digits) for digits in re.findall(r"\d+", path.name))
