"""RSNA 2019: labels of slices, and DICOM slices -> labels of series.

`stage_2_train.csv` has the columns ID and Label; an ID is the SOPInstanceUID of a slice and a
type of bleed, as in `ID_12cadc6af_epidural`. Which slices make a series only the headers say.
Source: A. E. Flanders et al., Radiology: Artificial Intelligence 2020;2(3):e190211.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headct.dicom.pseudonym import Pseudonymizer
from headct.dicom.series import SeriesFiles
from headct.errors import LabelError
from headct.labels.dicom_files import index_dicom
from headct.labels.lines import read_lines
from headct.labels.table import Labelled, Row, once_each
from headct.labels.vocabulary import Value, implied, shared_name
from headct.store.label_table import at_lines

TYPES = ("any", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
ANY = 1
TABLE = "the table of slice labels"


@dataclass
class SliceLabels:
    """Bits per SOPInstanceUID (bit i: TYPES[i]): 750,000 slices fit into memory so."""

    known: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    n_rows: int = 0
    n_doubled: int = 0


def read_slice_labels(path: Path) -> SliceLabels:
    """Labels per slice; a row that repeats an earlier one is counted.

    Raises:
        LabelError: other columns, an ID of another form, a label other than 0 and 1, or rows that
            contradict each other.
    """
    bits = {kind: 1 << place for place, kind in enumerate(TYPES)}
    labels = SliceLabels()
    faults: dict[str, list[int]] = {"that is no slice, type and 1 or 0": []}
    faults["that contradicts an earlier one"] = []
    malformed, contradicting = faults.values()
    for line, (name, label) in read_lines(path, TABLE, ("ID", "Label"), only=True):
        labels.n_rows += 1
        uid, _, kind = name.rpartition("_")
        bit = bits.get(kind, 0)
        if not uid or not bit or label not in ("0", "1"):
            malformed.append(line)
            continue
        known, present = labels.known.get(uid, 0), labels.present.get(uid, 0)
        if known & bit:
            labels.n_doubled += 1
            if bool(present & bit) != (label == "1"):
                contradicting.append(line)
        labels.known[uid] = known | bit
        if label == "1":
            labels.present[uid] = present | bit
    for fault, lines in faults.items():
        if lines:
            raise LabelError(
                f"{TABLE}: {at_lines(lines, 'row', fault)}",
                remedy="give stage_2_train.csv as it was published, or mend these rows",
            )
    return labels


def read_rsna(
    labels: Path, dicom: Sequence[Path], key: bytes, work: Path | None = None
) -> Labelled:
    """One row per DICOM series with a labelled slice.

    A finding is present where a slice of the series has it, absent where every slice is labelled
    and readable and none has it, else unknown.

    Args:
        labels: stage_2_train.csv.
        dicom: folders or archives with the slices, in any layout.
        key: the secret of the pseudonyms.
        work: see `index_dicom`.
    """
    slices = read_slice_labels(labels)
    found = index_dicom(dicom, work).series
    names = Pseudonymizer(key)
    rows, seen = [], set()
    n_slices = n_bare = n_series = 0
    for series in found:
        uids = {header.image_uid for header in series.headers}
        bare = sum(uid not in slices.known for uid in uids)
        seen |= uids
        n_slices += len(uids)
        n_bare += bare
        if bare == len(uids):
            n_series += 1
            continue
        patient = names.patient_id(series.patient_key)
        rows.append(Row(names.series_id(series.series_uid), patient, _of_series(series, slices)))
    n_lost = sum(uid not in seen for uid in slices.known)
    n_against = sum(bits > ANY and not bits & ANY for bits in slices.present.values())
    counts = {
        "rows repeat an earlier one: read once": slices.n_doubled,
        "slices have a type of bleed but any = 0: taken for a bleed": n_against,
        f"of {n_slices} DICOM slices have no label": n_bare,
        "labelled slices have no DICOM file": n_lost,
        "series have no labelled slice: left out": n_series,
        "series have an unreadable slice: nothing is absent there": sum(
            bool(series.damaged) for series in found
        ),
    }
    rows, notes = once_each(rows)
    notes += [f"{n} {what}" for what, n in counts.items() if n]
    return Labelled("series_id", rows, slices.n_rows, notes)


def _of_series(series: SeriesFiles, slices: SliceLabels) -> dict[str, Value]:
    uids = {header.image_uid for header in series.headers}
    present, known = 0, 0 if series.damaged else (1 << len(TYPES)) - 1
    for uid in uids:
        present |= slices.present.get(uid, 0)
        known &= slices.known.get(uid, 0)
    values: dict[str, Value] = {}
    for place, kind in enumerate(TYPES):
        bit = 1 << place
        values[shared_name(kind)] = 1 if present & bit else 0 if known & bit else None
    return implied(values)
