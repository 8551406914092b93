"""One job of a benchmark: an encoder, a method, labels, a seed and a site -> a task.

A job leaves BENCH/jobs/NAME.json: what the task was made from, or why there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from headct.adapt.attentive import AttentiveConfig, run_attentive
from headct.adapt.features import read_features
from headct.adapt.fewshot import FewshotConfig, run_fewshot
from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.knn import KnnConfig
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.start import Kind, Start
from headct.adapt.task import TASK_JSON
from headct.adapt.token_table import read_tokens
from headct.atomic import write_json
from headct.benchmark.encoders import (
    encoder_identity,
    read_record,
    sha256_of,
    table_path,
    tokens_path,
)
from headct.benchmark.spec import SCRATCH, BenchmarkSpec, Job
from headct.config import Config, apply_overrides, check, load_recipe
from headct.dicom.pseudonym import load_key
from headct.errors import HeadctError, LabelError
from headct.model.bundle import load_bundle
from headct.model.device import choose_device
from headct.store.labels import Labels, needs_key, read_labels, refused_ids
from headct.store.layout import ITEMS
from headct.store.store import Store, open_store

C = TypeVar("C", bound=Config)
RECIPES = "headct.adapt.recipes"


@dataclass(frozen=True)
class Failed:
    """A job that could not be done, and why."""

    job: str
    code: str
    message: str


@dataclass(frozen=True)
class Work:
    """What a worker needs to do one job."""

    spec: BenchmarkSpec
    out: Path
    job: Job


def do_job(work: Work) -> Failed | None:
    """Make one task, unless it was made from the same things before."""
    spec, out, job = work.spec, work.out, work.job
    record = _record_of(work)
    try:
        store = open_store(spec.store)
        labels = labels_of(spec, store, job.train_site)
        identity = identity_of(spec, store, labels, job)
        done = out / "tasks" / job.name
        if (done / TASK_JSON).is_file() and read_record(record) == identity:
            return None
        _make(spec, out, job, store, labels)
        write_json(record, identity)
    except HeadctError as error:
        return _failed(work, error.code, str(error))
    except Exception as error:  # one job never stops the others; its text may quote patient data
        return _failed(work, "unexpected", f"{type(error).__name__}, see it with HEADCT_DEBUG=1")
    return None


def lost_job(work: Work) -> Failed:
    """What is said of a job that killed its worker twice."""
    return _failed(work, "worker-died", "its process was killed twice (out of memory?)")


def _failed(work: Work, code: str, message: str) -> Failed:
    if os.environ.get("HEADCT_DEBUG") and code == "unexpected":
        traceback.print_exc()
    shutil.rmtree(work.out / "tasks" / work.job.name, ignore_errors=True)
    failed = Failed(work.job.name, code, message)
    write_json(_record_of(work), asdict(failed))
    return failed


def _record_of(work: Work) -> Path:
    return work.out / "jobs" / f"{work.job.name}.json"


def identity_of(spec: BenchmarkSpec, store: Store, labels: Labels, job: Job) -> dict[str, str]:
    """All that a task depends on."""
    method, voxels = (
        spec.methods[job.method],
        store.manifest["hu_sha256"].take(pa.array(labels.row)),
    )
    columns = (labels.scan_id, labels.values, labels.split, labels.site, labels.patient_id)
    seen = [labels.findings, *(column.tolist() for column in columns), voxels.to_pylist()]
    return {
        "job": job.name,
        "method": method.model_dump_json(),
        "recipe": sha256_of(method.recipe) if method.recipe else "",
        "encoder": _encoder_of(spec, job),
        "labels": hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16],
        "preprocessing": store.preprocessing.hash,
    }


def _encoder_of(spec: BenchmarkSpec, job: Job) -> str:
    """What identifies the encoder, or the architecture of a network with new weights."""
    if job.encoder:
        return encoder_identity(spec.encoders[job.encoder])
    architecture = _start(spec, job).bundle
    return architecture.hash if architecture else ""


def labels_of(spec: BenchmarkSpec, store: Store, train_site: str = "") -> Labels:
    """The labels of a job: train and tune scans of the training site, test scans of all sites.

    Splits that the table does not give are drawn once for all jobs, whatever their seeds.

    Raises:
        LabelError: the table cannot be used, or no train scan is of that site.
    """
    labels = read_labels(
        spec.labels,
        store.manifest,
        load_key(spec.key) if needs_key(spec.labels) else None,
        findings=spec.findings or None,
        refused=refused_ids(store.path / ITEMS),
        allow_missing=spec.allow_missing,
    )
    if not train_site:
        return labels
    here = labels.take(np.flatnonzero((labels.site == train_site) | (labels.split == "test")))
    if not len(here.positions("train")):
        sites = sorted(set(labels.site[labels.split == "train"]))
        raise LabelError(
            f"no train scan is of the site {train_site!r}",
            remedy=f"train_sites may name: {', '.join(name or '(no name)' for name in sites)}",
        )
    return here


def _make(spec: BenchmarkSpec, out: Path, job: Job, store: Store, labels: Labels) -> None:
    method, grid = spec.methods[job.method], store.preprocessing
    folder, n_labels, seed = out / "tasks" / job.name, job.n_labels or None, job.seed
    folder.parent.mkdir(parents=True, exist_ok=True)
    verb, given, name = method.verb, method.set, job.series
    if verb in SCRATCH or verb in ("finetune", "lora"):
        start = _start(spec, job)
        recipe: str | Path = method.recipe or ("lora" if verb == "lora" else start.kind)
        config = load_recipe(recipe, FinetuneConfig, given, builtin=RECIPES)
        run_finetune(store, labels, start, folder, config, n_labels=n_labels, seed=seed, name=name)
        return
    assert job.encoder is not None
    if verb == "attentive":
        tokens, how = (
            read_tokens(tokens_path(out, job.encoder)),
            _configured(AttentiveConfig, given),
        )
        run_attentive(tokens, labels, grid, folder, how, n_labels=n_labels, seed=seed, name=name)
        return
    table = read_features(table_path(spec, out, job.encoder))
    if verb == "fewshot":
        shots = _configured(FewshotConfig, given)
        run_fewshot(table, labels, grid, folder, shots, seed=seed, name=name)
        return
    model = _configured(KnnConfig, given) if verb == "knn" else _configured(ProbeConfig, given)
    run_probe(table, labels, grid, folder, model, n_labels=n_labels, seed=seed, name=name)


def _start(spec: BenchmarkSpec, job: Job) -> Start:
    verb = spec.methods[job.method].verb
    if job.encoder is not None:
        bundle = load_bundle(_bundle_of(spec, job.encoder), device=choose_device())
        return Start("bundle", bundle)
    kind = cast(Kind, verb.removeprefix("scratch-"))
    if kind != "vit":
        return Start(kind)
    bundles = [e.bundle for e in spec.encoders.values() if e.bundle]
    return Start("vit", load_bundle(bundles[0]) if bundles else None)


def _bundle_of(spec: BenchmarkSpec, name: str) -> Path:
    bundle = spec.encoders[name].bundle
    assert bundle is not None
    return bundle


def _configured(model: type[C], settings: Sequence[str]) -> C:
    values: dict[str, Any] = {}
    apply_overrides(values, settings)
    return check(values, model, "set")
