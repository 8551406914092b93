"""Run a benchmark: features once per encoder, then every task, resumable at any job.

BENCH/  features/   ENCODER.parquet, and ENCODER.tokens/ where a method reads tokens
        tasks/      ENCODER.METHOD.LABELS.SEED/: a task each
        jobs/       what each finished task was made from, and what went wrong with the others
        eval/       `headct evaluate` of all tasks together
        benchmark.parquet   one row per number
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from headct.adapt.attentive import AttentiveConfig, run_attentive
from headct.adapt.embed import embed_foreign, embed_source
from headct.adapt.features import read_features
from headct.adapt.fewshot import FewshotConfig, run_fewshot
from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.foreign import load_foreign
from headct.adapt.knn import KnnConfig
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.start import Kind, Start
from headct.adapt.task import TASK_JSON
from headct.adapt.token_table import read_tokens, write_tokens
from headct.atomic import write_json
from headct.benchmark.spec import ON_VECTORS, SCRATCH, BenchmarkSpec, EncoderSpec, Job
from headct.config import Config, apply_overrides, check, load_recipe
from headct.dicom.pseudonym import load_key
from headct.errors import HeadctError
from headct.model.bundle import load_bundle
from headct.progress import tracking
from headct.store.labels import Labels, needs_key, read_labels, refused_ids
from headct.store.layout import ITEMS
from headct.store.store import Store, open_store
from headct.workers import run_in_order

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


def run_matrix(spec: BenchmarkSpec, out: Path, jobs: int) -> list[Failed]:
    """Do every job that is not done yet.

    Args:
        spec: the matrix.
        out: BENCH folder.
        jobs: tasks that run side by side, in processes of one thread; 0: in this process.

    Returns:
        Jobs that failed; the others are done.
    """
    todo = list(spec.jobs())
    _labels(spec, open_store(spec.store), 0)  # a faulty table is said once, before hours of work
    for name in dict.fromkeys(job.encoder for job in todo if job.encoder):
        _prepare(spec, out, name, {spec.methods[j.method].verb for j in todo if j.encoder == name})
    failed = []
    with tracking("benchmark", len(todo), "tasks") as tracker:
        for result in run_in_order(do_job, [Work(spec, out, job) for job in todo], jobs):
            if result is not None:
                failed.append(result)
            tracker.advance()
    return failed


def task_folders(spec: BenchmarkSpec, out: Path) -> list[Path]:
    """Folders of the tasks of the matrix that are done."""
    folders = [out / "tasks" / job.name for job in spec.jobs()]
    return [folder for folder in folders if (folder / TASK_JSON).is_file()]


def do_job(work: Work) -> Failed | None:
    """Make one task, unless it was made from the same things before."""
    spec, out, job = work.spec, work.out, work.job
    record = out / "jobs" / f"{job.name}.json"
    try:
        store = open_store(spec.store)
        labels = _labels(spec, store, job.seed)
        identity = _identity(spec, store, labels, job)
        done = out / "tasks" / job.name
        if (done / TASK_JSON).is_file() and _recorded(record) == identity:
            return None
        _make(spec, out, job, store, labels)
        write_json(record, identity)
    except HeadctError as error:
        shutil.rmtree(out / "tasks" / job.name, ignore_errors=True)
        failed = Failed(job.name, error.code, str(error))
        write_json(record, asdict(failed))
        return failed
    return None


def _recorded(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _identity(spec: BenchmarkSpec, store: Store, labels: Labels, job: Job) -> dict[str, str]:
    """All that a task depends on."""
    encoder = spec.encoders[job.encoder] if job.encoder else None
    seen = [labels.scan_id.tolist(), labels.findings, labels.values.tolist(), labels.split.tolist()]
    return {
        "job": job.name,
        "method": spec.methods[job.method].model_dump_json(),
        "encoder": _encoder_identity(encoder) if encoder else "",
        "labels": hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16],
        "preprocessing": store.preprocessing.hash,
    }


def _encoder_identity(encoder: EncoderSpec) -> str:
    if encoder.bundle is not None:
        return f"{load_bundle(encoder.bundle).hash} {encoder.random_init}"
    for file in (encoder.features, encoder.weights):
        if file is not None:
            return _sha256(file)
    return f"{encoder.floor or encoder.encoder} {encoder.random_init}"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def _labels(spec: BenchmarkSpec, store: Store, seed: int) -> Labels:
    return read_labels(
        spec.labels,
        store.manifest,
        load_key(spec.key) if needs_key(spec.labels) else None,
        findings=spec.findings or None,
        refused=refused_ids(store.path / ITEMS),
        allow_missing=spec.allow_missing,
        seed=seed,
    )


def _prepare(spec: BenchmarkSpec, out: Path, name: str, verbs: set[str]) -> None:
    """Features of an encoder, once; those of another bundle or store are made again."""
    encoder, store = spec.encoders[name], open_store(spec.store)
    bundle = load_bundle(encoder.bundle) if encoder.bundle else None
    wanted = [_encoder_identity(encoder), store.preprocessing.hash, list(store.scan_ids)]
    identity = {"made from": hashlib.sha256(json.dumps(wanted).encode()).hexdigest()}
    about = out / "features" / f"{name}.json"
    if _recorded(about) != identity:
        for stale in (_table(spec, out, name), _tokens(out, name)):
            if encoder.features is None and stale.is_file():
                stale.unlink()
            elif stale.is_dir():
                shutil.rmtree(stale)
        write_json(about, identity)
    if verbs & set(ON_VECTORS) and encoder.features is None:
        path = _table(spec, out, name)
        if not path.exists() and encoder.encoder is not None:
            foreign = load_foreign(encoder.encoder, encoder.weights, encoder.random_init)
            embed_foreign(spec.store, path, foreign, init_seed=encoder.random_init or 0)
        elif not path.exists():
            kind = encoder.floor or ("encoder" if encoder.random_init is None else "random-init")
            embed_source(spec.store, path, kind, bundle, init_seed=encoder.random_init or 0)
    if "attentive" in verbs and bundle is not None and encoder.random_init is None:
        write_tokens(_tokens(out, name), store, bundle)


def _table(spec: BenchmarkSpec, out: Path, name: str) -> Path:
    return spec.encoders[name].features or out / "features" / f"{name}.parquet"


def _tokens(out: Path, name: str) -> Path:
    return out / "features" / f"{name}.tokens"


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
        tokens, how = read_tokens(_tokens(out, job.encoder)), _configured(AttentiveConfig, given)
        run_attentive(tokens, labels, grid, folder, how, n_labels=n_labels, seed=seed, name=name)
        return
    table = read_features(_table(spec, out, job.encoder))
    if verb == "fewshot":
        shots = _configured(FewshotConfig, given)
        run_fewshot(table, labels, grid, folder, shots, seed=seed, name=name)
        return
    model = _configured(KnnConfig, given) if verb == "knn" else _configured(ProbeConfig, given)
    run_probe(table, labels, grid, folder, model, n_labels=n_labels, seed=seed, name=name)


def _start(spec: BenchmarkSpec, job: Job) -> Start:
    verb = spec.methods[job.method].verb
    if job.encoder is not None:
        return Start("bundle", load_bundle(_bundle_of(spec, job.encoder)))
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
