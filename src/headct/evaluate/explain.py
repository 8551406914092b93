"""What a task looked at: maps in scan space, pictures, and how well they lie on lesions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headct.adapt.attentive import load_attentive
from headct.adapt.task import PREDICTIONS, Task, load_task
from headct.atomic import replacing, write_json, write_text
from headct.errors import UsageError
from headct.evaluate.attention import (
    attention_volume,
    gradient_attention_volume,
    head_of,
    montage,
    query_attention_volume,
)
from headct.evaluate.gallery import encoder_of
from headct.evaluate.localisation import locate, mask_of, outline, summarise
from headct.evaluate.localisation_figure import as_file, localisation_figure
from headct.progress import track
from headct.store.store import Store
from headct.volume.nifti import write_nifti

Row = dict[str, Any]
LOCALISATION = "localisation.json"
FIGURE = "localisation.svg"


@dataclass(frozen=True)
class Masks:
    """Where masks are.

    Attributes:
        folder: see `mask_of`.
        names_of: pseudonym of a study or scan -> names that its mask files may have.
    """

    folder: Path
    names_of: dict[str, str]


def explain(
    store: Store,
    task_folder: Path,
    bundle_folder: Path | None,
    out: Path,
    *,
    findings: Sequence[str] = (),
    scan_ids: Sequence[str] = (),
    n_scans: int = 8,
    masks: Masks | None = None,
    n_boot: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Write maps of some scans, and compare them with masks where there are any.

    OUT/  SCAN_FINDING_attention.nii.gz, ..._gradient.nii.gz   float32, 0..1, in scan space;
                                   of an attentive probe ..._query.nii.gz, too
          SCAN_FINDING.png         slices, the maps, and the rim of the mask
          localisation.parquet     a row per scan, finding and map
          localisation.json, .svg  the same in sum: hits and overlap beside chance

    Args:
        store: of the scans.
        task_folder: a task that reads the tokens of an encoder.
        bundle_folder: the encoder of a probe.
        out: folder to write.
        findings: which; none: all of the task.
        scan_ids: which scans; none: test scans that have the finding, highest scores first.
        n_scans: of these, at most so many per finding.
        masks: of lesions.
        n_boot: resamples of patients behind the intervals.
        seed: of the resamples.

    Returns:
        The summary: hits and Dice per map and finding; empty without masks.

    Raises:
        UsageError: a finding that the task does not know, or nothing to explain.
        MismatchError: store, task and bundle do not belong together.
    """
    task = load_task(task_folder)
    task.info.preprocessing.require_same(store.preprocessing, "the task", "the store")
    unknown = sorted(set(findings) - set(task.info.findings))
    if unknown:
        known = ", ".join(task.info.findings)
        raise UsageError(f"the task does not know {', '.join(unknown)}", remedy=f"one of: {known}")
    bundle, head = encoder_of(task, bundle_folder), head_of(task)
    queries = load_attentive(task) if task.info.kind == "attentive" else None
    chosen = _chosen(task, findings or task.info.findings, scan_ids, n_scans)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for finding, scan_id in track(chosen, "explain", len(chosen)):
        volume = store[scan_id]
        column = task.info.findings.index(finding)
        heats = {
            "attention": attention_volume(bundle, volume),
            "gradient": gradient_attention_volume(bundle, head, column, volume),
        }
        if queries is not None:
            heats["query"] = query_attention_volume(bundle, queries, column, volume)
        for name, heat in heats.items():
            write_nifti(out / f"{scan_id}_{finding}_{name}.nii.gz", heat)
        shown = [np.asarray(heat.hu) for heat in heats.values()]
        about = store.manifest.slice(store.row_of(scan_id), 1).to_pylist()[0]
        mask = None
        if masks is not None:
            names = [masks.names_of.get(about[key], about[key]) for key in ("study_id", "scan_id")]
            mask = mask_of(masks.folder, names, finding, volume)
        if mask is not None:
            who = {"scan_id": scan_id, "patient_id": about["patient_id"], "finding": finding}
            rows += [
                who | {"map": name} | asdict(locate(np.asarray(heat.hu), mask, volume))
                for name, heat in heats.items()
            ]
            shown.append(outline(mask))
        (out / f"{scan_id}_{finding}.png").write_bytes(
            montage(volume.hu, shown, volume.spacing_mm_zyx)
        )
    return _summarised(rows, out, n_boot, seed)


def _chosen(
    task: Task, findings: Sequence[str], scan_ids: Sequence[str], n_scans: int
) -> list[tuple[str, str]]:
    if scan_ids:
        return [(finding, scan_id) for finding in findings for scan_id in scan_ids]
    table = pq.read_table(task.folder / PREDICTIONS)
    table = table.filter((pc.field("split") == "test") & (pc.field("y_true") == 1))
    rows = sorted(table.to_pylist(), key=lambda row: (-row["y_score"], row["scan_id"]))
    chosen = []
    for finding in findings:
        mine = [row["scan_id"] for row in rows if row["finding"] == finding]
        chosen += [(finding, scan_id) for scan_id in mine[:n_scans]]
    if not chosen:
        raise UsageError("no test scan has one of the findings", remedy="name scans with --scan")
    return chosen


def _summarised(rows: list[Row], out: Path, n_boot: int, seed: int) -> list[Row]:
    if not rows:
        return []
    summary = summarise(rows, n_boot=n_boot, seed=seed)
    with replacing(out / "localisation.parquet") as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside)
    write_json(out / LOCALISATION, {"n_boot": n_boot, "seed": seed, "summary": summary})
    write_text(out / FIGURE, as_file(localisation_figure(summary)))
    return summary


def read_localisation(folder: Path) -> list[Row]:
    """The summary that `explain` with masks left in a folder.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    try:
        text = (folder / LOCALISATION).read_text(encoding="utf-8")
        return list(json.loads(text)["summary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder.name!r} does not say how well maps lie on lesions",
            remedy="make it with `headct explain STORE --task TASK --masks MASKS --out MAPS`",
        ) from error
