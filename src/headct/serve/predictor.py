"""Scans in, scores out, by the pipeline that evaluation used: ingest's checks, grid and head.

A scan has the same score here and in predictions.parquet, to the last digit on a CPU. What ingest
refuses is answered as not analysed, with the reason. No answer ever says "normal".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headct import __version__
from headct.adapt.predictions import rounded
from headct.adapt.scoring import Score, scorer
from headct.adapt.task import BUNDLE, TaskInfo, load_task
from headct.dicom.index import index_paths
from headct.dicom.pseudonym import Pseudonymizer, load_key
from headct.dicom.reasons import Reason, Status
from headct.ingest.criteria import Criteria
from headct.ingest.pipeline import list_tasks, once
from headct.ingest.series import Settings, Task, process
from headct.model.bundle import load_bundle
from headct.model.device import choose_device

SCOPE = "research use only, not a diagnosis; a finding that is not called is not ruled out"


@dataclass(frozen=True)
class FindingScore:
    """Score of one finding in [0, 1]; `called` is None where the task has no threshold."""

    finding: str
    score: float
    threshold: float | None
    called: bool | None


@dataclass(frozen=True)
class Answer:
    """What is said about one input.

    Attributes:
        status: analysed, or not-analysed.
        source: pseudonym of the input.
        path_number: which of the paths given it lies in, from 1; of a series its first file.
        scan_id: pseudonym of the scan, the same as in a store made with the same key.
        series_id: pseudonym of the series; empty for a file that is no DICOM series.
        reason: why it was not analysed, as a code.
        message: the same in words.
        warnings: what ingest flagged, code and meaning.
        findings: scores, in the order of the task.
        seconds: from the files to the scores.
        at: when, UTC.
    """

    status: str
    source: str
    path_number: int = 0
    scan_id: str = ""
    series_id: str = ""
    reason: str = ""
    message: str = ""
    warnings: tuple[tuple[str, str], ...] = ()
    findings: tuple[FindingScore, ...] = ()
    seconds: float = 0.0
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Predictor:
    """A task ready to score scans; made by `load_predictor`.

    Attributes:
        info: of the task: findings, thresholds, hashes.
        bundle_hash: of the encoder that scores; empty where none does. A fine-tuned task has its
            own, and `info` names the one that it started from.
    """

    def __init__(
        self, info: TaskInfo, bundle_hash: str, score: Score, key: bytes, criteria: Criteria
    ) -> None:
        self.info = info
        self.bundle_hash = bundle_hash
        self._score = score
        self._settings = Settings(info.preprocessing, criteria, key)

    def predict(self, paths: Sequence[Path]) -> Iterator[Answer]:
        """Answers about everything in folders and files, path by path, as each is done.

        A scan that came from another input before is not analysed again: it is its twin.

        Raises:
            UsageError: a path is missing, or holds no DICOM and no NIfTI file.
        """
        names = Pseudonymizer(self._settings.key)
        tasks = [(_number(task, paths), task) for task in list_tasks(index_paths(paths), names)]
        owners: dict[str, str] = {}
        for number, task in sorted(tasks, key=lambda numbered: numbered[0]):
            started = time.perf_counter()
            outcome = process(self._settings, task)
            hu_of = {str(row["scan_id"]): hu for hu, row in outcome.scans}
            for item in (once(item, owners) for item in outcome.items):
                is_twin = item["reason"] == Reason.TWIN
                hu = None if is_twin else hu_of.get(str(item["scan_id"]))
                yield replace(self._answer(item, hu, started), path_number=number)

    def score_hu(self, hu: NDArray[np.int16]) -> tuple[FindingScore, ...]:
        """Scores of one canonical volume [z y x]."""
        scores = rounded(self._score(hu[None])[0])
        return tuple(
            FindingScore(name, float(score), threshold, _called(float(score), threshold))
            for name, score in zip(self.info.findings, scores, strict=True)
            for threshold in [self.info.thresholds.get(name)]
        )

    def about(self) -> dict[str, Any]:
        """What goes with every answer: scope, versions, hashes."""
        return {
            "scope": SCOPE,
            "headct": __version__,
            "method": self.info.method,
            "bundle_hash": self.bundle_hash,
            "preprocessing_hash": self.info.preprocessing.hash,
            "preprocessing_version": self.info.preprocessing.version,
            "threshold_specificity": self.info.threshold_specificity,
        }

    def _answer(self, item: dict[str, Any], hu: NDArray[np.int16] | None, started: float) -> Answer:
        names = {"source": item["source"], "series_id": item["series"] or ""}
        if hu is None:
            message = item["message"] or _meaning(item["reason"])
            return Answer("not-analysed", **names, reason=item["reason"], message=message)
        findings = self.score_hu(hu)
        return Answer(
            "analysed",
            **names,
            scan_id=item["scan_id"],
            warnings=tuple((flag, _meaning(flag)) for flag in item["flags"]),
            findings=findings,
            seconds=round(time.perf_counter() - started, 3),
        )


def load_predictor(
    task: Path,
    bundle: Path | None = None,
    *,
    key_file: Path | None = None,
    criteria: Criteria | None = None,
    device: torch.device | None = None,
) -> Predictor:
    """Load a task and its encoder.

    Args:
        task: folder made by `headct probe`, `fewshot` or `finetune`.
        bundle: the encoder that the task starts from; a fine-tuned task has its own.
        key_file: key of the pseudonyms, as in `headct ingest`.
        criteria: what is refused; the defaults of ingest where none.
        device: where encoder and head compute; a GPU where there is one if None.

    Raises:
        MismatchError: the bundle is not that of the task, or has another preprocessing.
        CheckpointError: no task or bundle there, or a damaged one.
        UsageError: a task without an encoder and no bundle given.
    """
    loaded = load_task(task)
    device = device or choose_device()
    encoder = None if bundle is None else load_bundle(bundle, device=device)
    own = load_bundle(task / BUNDLE) if (task / BUNDLE).is_dir() else None
    for name, one in (("the bundle", encoder), ("the encoder of the task", own)):
        if one is not None:
            loaded.info.preprocessing.require_same(one.preprocessing, "the task", name)
    score = scorer(loaded, encoder, device)
    bundle_hash = own.hash if own is not None else loaded.info.bundle_hash
    return Predictor(loaded.info, bundle_hash, score, load_key(key_file), criteria or Criteria())


def to_json(answer: Answer, about: dict[str, Any]) -> dict[str, Any]:
    """An answer as plain values; every one carries scope and hashes."""
    values = asdict(answer)
    values["warnings"] = [{"code": code, "meaning": text} for code, text in answer.warnings]
    return values | about


def _number(task: Task, paths: Sequence[Path]) -> int:
    """Which of the paths an input lies in, from 1; 0 where none is seen to hold it."""
    if task.place is None:
        return 0
    for form in (Path.absolute, Path.resolve):
        place = form(task.place)
        for number, path in enumerate(paths, 1):
            if place.is_relative_to(form(path)):
                return number
    return 0


def _called(score: float, threshold: float | None) -> bool | None:
    return None if threshold is None else score >= threshold


def _meaning(code: str) -> str:
    return next((reason.meaning for reason in Reason if str(reason) == code), "")


def was_skipped(answer: Answer) -> bool:
    """Whether an input is of a kind that is never a scan: a note, a directory file, a report."""
    kinds = {str(reason) for reason in Reason if reason.status == Status.SKIPPED}
    return answer.reason in kinds
