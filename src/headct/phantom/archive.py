"""Two synthetic hospitals on disk: the whole of `headct phantom`.

ARCHIVE/  dicom/<site>/ST00001/...   CT series and everything else that lies in an archive; or
          nifti/<site>/sub-*/ses-*/   NIfTI files named as in BIDS; nifti.csv has their studies; or
          store/                     the labelled scans on the canonical grid
          labels.csv                 one row per labelled study: 1, 0 or nothing per finding
          truth/findings.parquet     every finding with side, place, stage, HU, volume
          truth/reports.csv          the same in the words of a radiology report
          truth/scans.parquet        every scan: day, midline shift, Evans index, CSF
          truth/masks/<uid>.npz      where it is, on the grid of the series; or <uid>/*.nii.gz; or
                                     <scan_id>.npz beside a store
          truth/pairs.csv            scans of one patient on one day by two scanners, if asked for
          truth/planted.csv          what was planted, and what ingest must say about it
          pool/                      store of unlabelled scans
          config.toml  run.json      the recipe, and how it was run
          sites/<site>.toml          the site profiles that it names, in full

Safe against a kill at any moment: a study counts once its line is in the journal, and the same
command goes on from there to the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from headct.atomic import replacing, write_text
from headct.config import to_toml
from headct.errors import UsageError
from headct.phantom.odd.plant import plant_odd
from headct.phantom.outputs import StudyJob, StudyRecord, make_study
from headct.phantom.plan import Study, plan_studies, study_uid
from headct.phantom.pool import item_of, write_pool
from headct.phantom.profile import FINDINGS, Output, PhantomPreset, named_sites
from headct.progress import tracking
from headct.run import append_jsonl, read_jsonl, write_run_record
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS
from headct.workers import run_in_order

CONFIG = "config.toml"
JOURNAL = ".journal.jsonl"
LABELS = "labels.csv"
STAGING = ".staging"
STORE = "store"

ABOUT = ("patient_id", "site", "split", *FINDINGS)
LABEL_COLUMNS: dict[Output, tuple[str, ...]] = {
    "dicom": ("study_uid", *ABOUT),
    "nifti": ("study_uid", *ABOUT),
    "store": ("scan_id", *ABOUT),
}
NIFTI_COLUMNS = ("file", "patient", "study")
PLANTED_COLUMNS = ("what", "site", "study_uid", "series_uid", "path", "status", "reason")
REPORT_COLUMNS = ("study_uid", "findings", "impression")
PAIR_COLUMNS = ("study_uid", "site", "rescan_study_uid", "rescan_site")
TRUTH_SCHEMA = pa.schema(
    [
        pa.field("study_uid", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("finding", pa.string(), nullable=False),
        pa.field("side", pa.string()),
        pa.field("location", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("n_lesions", pa.int64()),
        pa.field("age_days", pa.float64()),
        pa.field("severity", pa.float64()),
        pa.field("hu", pa.float64()),
        pa.field("volume_ml", pa.float64()),
        pa.field("midline_shift_mm", pa.float64()),
    ]
)
"""Columns of truth/findings.parquet: one row per finding that is there; stage, age and HU are those
of its largest lesion. `midline_shift_mm` is the whole scan's, positive to the patient's right."""
SCANS_SCHEMA = pa.schema(
    [
        pa.field("study_uid", pa.string(), nullable=False),
        pa.field("scan_id", pa.string()),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("scan", pa.int64(), nullable=False),
        pa.field("days", pa.float64(), nullable=False),
        pa.field("age_years", pa.int64(), nullable=False),
        pa.field("sex", pa.string(), nullable=False),
        pa.field("midline_shift_mm", pa.float64(), nullable=False),
        pa.field("evans_index", pa.float64(), nullable=False),
        pa.field("csf_ml", pa.float64(), nullable=False),
        pa.field("ventricles_ml", pa.float64(), nullable=False),
    ]
)
"""Columns of truth/scans.parquet: one row per labelled study. `scan_id` where the scans are in a
store; `days` since the first scan; `csf_ml` of sulci and cisterns, and `ventricles_ml`, are what is
in the picture."""


def write_archive(preset: PhantomPreset, folder: Path, n_workers: int) -> str:
    """Make an archive, or go on with one that was interrupted.

    Args:
        preset: what it holds.
        folder: made where it is absent.
        n_workers: processes; the result does not depend on it.

    Returns:
        What is there, in a few lines.

    Raises:
        UsageError: the folder holds something else, or an archive of another recipe or of other
            site profiles.
    """
    studies = plan_studies(preset)
    profiles = _profiles(preset)
    _require_ours(preset, profiles, folder)
    if not (folder / CONFIG).exists():
        write_run_record(folder, preset, seed=preset.seed, verb="phantom")
    for path, text in profiles.items():
        if not (folder / path).exists():
            write_text(folder / path, text)
    made = (folder / LABELS).exists()
    records = [] if made else _make_studies(preset, studies, folder, n_workers)
    n_pool = write_pool(preset, folder / "pool", n_workers) if preset.n_pool else 0
    if not made:  # last: where labels.csv is, everything is
        every = preset.faults == "all" and preset.output == "dicom"
        planted = [row for record in records for row in record["planted"]]
        planted += plant_odd(preset, folder, n_workers) if every else []
        write_text(folder / "truth" / "planted.csv", _csv(PLANTED_COLUMNS, planted))
        _write_tables(preset, folder, records, _pairs(preset, studies))
    (folder / JOURNAL).unlink(missing_ok=True)
    return _summary(folder, studies, n_pool)


def _profiles(preset: PhantomPreset) -> dict[str, str]:
    """Path in the archive -> text of each site profile: the recipe has but the name of a file."""
    return {f"sites/{site.name}.toml": to_toml(site) for site in named_sites(preset)}


def _require_ours(preset: PhantomPreset, profiles: dict[str, str], folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder.name!r} is a file", remedy="give a folder to --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    config = folder / CONFIG
    if not config.exists():
        raise UsageError(
            f"{folder.name!r} holds other things than a phantom archive",
            remedy="give an empty or new folder to --out",
        )
    if config.read_text(encoding="utf-8") != to_toml(preset):
        raise UsageError(
            f"{folder.name!r} was made with another recipe or seed",
            remedy=f"give another --out, remove the folder, or run with its own {CONFIG}",
        )
    for path, text in profiles.items():
        if (folder / path).exists() and (folder / path).read_text(encoding="utf-8") != text:
            raise UsageError(
                f"{folder.name!r} was made with another {path}",
                remedy="give another --out, or the site profile as it was",
            )


def _make_studies(
    preset: PhantomPreset, studies: list[Study], folder: Path, n_workers: int
) -> list[StudyRecord]:
    """Records of all studies in their order; those in the journal are not made again."""
    journal = folder / JOURNAL
    records = {row["index"]: cast(StudyRecord, row) for row in read_jsonl(journal)}
    with ExitStack() as stack:
        store = None
        if preset.output == "store":
            store = stack.enter_context(StoreWriter(folder / STORE, PRESETS[preset.pool_grid]))
            # lines of scans that were not yet on disk, which comes about shard by shard
            records = {i: row for i, row in records.items() if i < len(store)}
        # the last line may have been torn by a kill: what follows must start on a line of its own
        write_text(journal, "".join(json.dumps(row) + "\n" for row in records.values()))
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        left = [study for study in studies if study.index not in records]
        tasks = [StudyJob(preset, study, str(folder)) for study in left]
        with tracking("studies", len(studies), "studies") as tracker:
            tracker.advance(len(records))
            for made in run_in_order(make_study, tasks, n_workers if n_workers > 1 else 0):
                append_jsonl(journal, [dict(made.record)])
                records[made.record["index"]] = made.record
                if store is not None and made.scan is not None:
                    row = made.scan[1]
                    if row["scan_id"] not in store:  # its journal line alone may have been lost
                        store.add([item_of(row)], [made.scan])
                tracker.advance()
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    return [records[study.index] for study in studies]


def _pairs(preset: PhantomPreset, studies: list[Study]) -> list[dict[str, Any]]:
    """Rows of truth/pairs.csv."""
    first = {(s.patient.number, s.scan): s for s in studies if not s.rescan}
    again = [(first[s.patient.number, s.scan], s) for s in studies if s.rescan]
    return [
        {
            "study_uid": study_uid(preset.seed, one),
            "site": one.site,
            "rescan_study_uid": study_uid(preset.seed, other),
            "rescan_site": other.site,
        }
        for one, other in again
    ]


def _write_tables(
    preset: PhantomPreset,
    folder: Path,
    records: list[StudyRecord],
    pairs: list[dict[str, Any]],
) -> None:
    """Truth first, labels last: where labels.csv is, all else is complete."""
    truth = folder / "truth"
    if pairs:
        write_text(truth / "pairs.csv", _csv(PAIR_COLUMNS, pairs))
    reports = [record["report"] for record in records if record["report"]]
    write_text(truth / "reports.csv", _csv(REPORT_COLUMNS, reports))
    findings = [row for record in records for row in record["findings"]]
    scans = [record["scan"] for record in records if record["scan"]]
    for name, rows, schema in (
        ("findings", findings, TRUTH_SCHEMA),
        ("scans", scans, SCANS_SCHEMA),
    ):
        with replacing(truth / f"{name}.parquet") as aside:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside)
    files = [record["nifti"] for record in records if record["nifti"]]
    if files:
        write_text(folder / "nifti" / "nifti.csv", _csv(NIFTI_COLUMNS, files))
        _write_participants(folder / "nifti", list(zip(files, scans, strict=True)))
    labels = [record["label"] for record in records if record["label"]]
    write_text(folder / LABELS, _csv(LABEL_COLUMNS[preset.output], labels))


def _write_participants(folder: Path, scans: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """participants.tsv of each site's data set, as in BIDS; age at the first scan."""
    data_sets = [(file["file"].split("/")[0], row) for file, row in scans]
    for site in dict.fromkeys(name for name, _ in data_sets):
        here = [row for name, row in reversed(data_sets) if name == site]
        first = {row["patient_id"]: row for row in here}
        rows = [
            {"participant_id": f"sub-{name}", "age": row["age_years"], "sex": row["sex"]}
            for name, row in sorted(first.items())
        ]
        write_text(
            folder / site / "participants.tsv", _csv(("participant_id", "age", "sex"), rows, "\t")
        )


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _summary(folder: Path, studies: list[Study], n_pool: int) -> str:
    lines = [f"archive: {folder}"]
    lines += [f"  {site}: {text}" for site, text in _counts(studies)]
    return "\n".join([*lines, f"  pool: {n_pool} unlabelled scans"])


def _counts(studies: list[Study]) -> Iterator[tuple[str, str]]:
    for site in dict.fromkeys(study.site for study in studies):
        here = [study for study in studies if study.site == site]
        labelled = [study.split for study in here if study.split]
        splits = ", ".join(f"{labelled.count(s)} {s}" for s in dict.fromkeys(labelled))
        n_faulty = len(here) - len(labelled)
        yield site, f"{len(labelled)} labelled studies ({splits}), {n_faulty} with a planted fault"
