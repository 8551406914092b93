"""Settings of fine-tuning beside each other, without a look at a test patient.

    python benchmarks/finetune_rates.py --data WORK/base/labelled --bundle BUNDLE --work RATES \\
        "optim.lr=3e-4 head_lr_factor=1" "optim.lr=1e-3 head_lr_factor=1" "vit optim.lr=3e-4"

`--data` is a folder of `headct phantom --output store`. Each draw trains on a third of its train
patients and scores the other two thirds; patients of other splits are left out. A setting that
begins with vit or cnn3d starts from new weights. The same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from recipe import Job, Runner
from sklearn.metrics import log_loss, roc_auc_score

FEWEST_POSITIVES = 10
PARTS = 6
"""Stretches of the training whose mean loss is shown."""


def draw_labels(table: Path, out: Path, draw: int) -> None:
    """A label table of the train patients alone: a third of the scans is train, two ninths tune."""
    with table.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "train"]
    patients = sorted({row["patient_id"] for row in rows})
    order = np.random.default_rng([draw, 77]).permutation(len(patients))
    place = {patients[number]: rank for rank, number in enumerate(order)}
    rows.sort(key=lambda row: place[row["patient_id"]])
    split_of: dict[str, str] = {}
    for seen, row in enumerate(rows):
        split = "train" if 3 * seen < len(rows) else "tune" if 9 * seen < 5 * len(rows) else "test"
        row["split"] = split_of.setdefault(row["patient_id"], split)
    with out.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def job(args: argparse.Namespace, setting: str, draw: int) -> Job:
    """`headct finetune` with a setting on a draw."""
    words = setting.split()
    scratch = words.pop(0) if "=" not in words[0] else ""
    start = [] if scratch == "cnn3d" else ["--bundle", str(args.bundle)]
    start += ["--from-scratch", scratch] if scratch else []
    out = args.work / f"{setting.replace(' ', '_')}-{draw}"
    where = ("--store", str(args.data / "store"), "--labels", str(args.work / f"{draw}.csv"))
    how = ("--seed", str(draw), "--out", str(out), *(w for s in words for w in ("--set", s)))
    return Job(out / "task.json", ("finetune", *where, *start, *how))


def score(task: Path) -> tuple[float, float, list[float]]:
    """Macro-AUROC and log loss on all that was not trained on; training loss, part by part."""
    found = pq.read_table(task / "predictions.parquet").to_pydict()
    finding, truth, scores = (np.asarray(found[n]) for n in ("finding", "y_true", "y_score"))
    areas = [
        roc_auc_score(truth[here], scores[here])
        for here in (finding == name for name in np.unique(finding))
        if truth[here].sum() >= FEWEST_POSITIVES
    ]
    lines = (task / "metrics.jsonl").read_text().splitlines()
    losses = np.array_split([json.loads(line)["loss"] for line in lines], PARTS)
    return float(np.mean(areas)), log_loss(truth, scores), [float(part.mean()) for part in losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", help="words KEY=VALUE of --set; vit or cnn3d first")
    parser.add_argument("--data", type=Path, required=True, help="folder of store and labels.csv")
    parser.add_argument("--bundle", type=Path, required=True, help="encoder to start from")
    parser.add_argument("--work", type=Path, required=True, help="folder of all results")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="commands at once, a thread each")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for draw in range(args.draws):
        draw_labels(args.data / "labels.csv", args.work / f"{draw}.csv", draw)
    jobs = [[job(args, setting, draw) for draw in range(args.draws)] for setting in args.settings]
    run = Runner(args.work, args.jobs, threads=1)
    run("fine-tunings", [each for draws in zip(*jobs, strict=True) for each in draws])
    print("macro-AUROC and log loss by draw, training loss in parts")
    for setting, draws in zip(args.settings, jobs, strict=True):
        rows = [score(each.result.parent) for each in draws]
        areas, losses = (" ".join(f"{row[n]:.4f}" for row in rows) for n in (0, 1))
        course = " ".join(f"{part:.2f}" for part in np.mean([row[2] for row in rows], 0))
        print(f"{setting:45} {areas}   {losses}   {course}")


if __name__ == "__main__":
    main()
