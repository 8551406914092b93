"""Run a benchmark: features once per encoder, then every task, resumable at any job.

BENCH/  features/   ENCODER.parquet, and ENCODER.tokens/ where a method reads tokens
        tasks/      ENCODER.METHOD.LABELS.SEED[@SITE]/: a task each
        jobs/       what each finished task was made from, and what went wrong with the others
        eval/       `headct evaluate` of all tasks together; with train_sites eval/SITE/ of each
        benchmark.parquet   one row per number
        run.json            versions and options of the last call; says that the folder is ours
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headct.adapt.task import TASK_JSON
from headct.benchmark.encoders import Encoding, prepare, read_record
from headct.benchmark.jobs import Failed, Work, do_job, labels_of, lost_job
from headct.benchmark.spec import BenchmarkSpec, Job
from headct.dicom.pseudonym import key_path
from headct.engine.choice import Engine
from headct.errors import UsageError
from headct.progress import track, tracking
from headct.run import write_run_record
from headct.store.labels import needs_key
from headct.store.store import open_store

VERB = "benchmark"


def run_matrix(spec: BenchmarkSpec, out: Path, engine: Engine) -> list[Failed]:
    """Do every job that is not done yet.

    Args:
        spec: the matrix.
        out: BENCH folder; where jobs run on other machines, on a disk that all of them see.
        engine: where tasks run; a task has one thread of a CPU, and a GPU where there is one.

    Returns:
        Jobs that failed; the others are done.

    Raises:
        LabelError: the label table cannot be used, or has no train scan of a training site.
        HeadctError: an encoder cannot be used.
        UsageError: `out` holds something else.
    """
    engine.check()
    _require_ours(out)
    todo = list(spec.jobs())
    for site in spec.train_sites or ("",):  # faults are said once, before hours of work
        labels_of(spec, open_store(spec.store), site)
    if needs_key(spec.labels):
        spec = spec.model_copy(update={"key": key_path(spec.key).absolute()})
    write_run_record(out, None, seed=None, verb=VERB)
    out = out.absolute()
    encodings = [
        Encoding(spec, out, name, frozenset(spec.methods[j.method].verb for j in jobs))
        for name, jobs in _by_encoder(todo).items()
    ]
    failed = []
    works = [Work(spec, out, job) for job in todo]
    with _private_folder(out, engine) as folder:
        if engine.kind == "local":  # with all threads of this machine, one after the other
            for encoding in encodings:
                prepare(encoding)
        else:
            done = engine.run_in_order(prepare, encodings, folder=folder)
            for _ in track(done, "encoders", len(encodings)):
                pass
        with tracking("benchmark", len(todo), "tasks") as tracker:
            for result in engine.run_in_order(do_job, works, folder=folder, lost=lost_job):
                if result is not None:
                    failed.append(result)
                tracker.advance()
    return failed


def _require_ours(out: Path) -> None:
    is_empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_empty and read_record(out / "run.json").get("verb") != VERB:
        raise UsageError(f"{out.name!r} is there and is no benchmark", remedy="give another --out")


def _by_encoder(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.encoder:
            found.setdefault(job.encoder, []).append(job)
    return found


@contextmanager
def _private_folder(out: Path, engine: Engine) -> Iterator[Path | None]:
    """A folder for what Slurm's jobs are told; None where nothing is told by files."""
    if not engine.kind.startswith("slurm"):
        yield None
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".jobs-") as name:
        yield Path(name)


def task_folders(spec: BenchmarkSpec, out: Path, train_site: str = "") -> list[Path]:
    """Folders of the tasks of a training site (none: of all sites together) that are done."""
    jobs = [job for job in spec.jobs() if job.train_site == train_site]
    folders = [out / "tasks" / job.name for job in jobs]
    return [folder for folder in folders if (folder / TASK_JSON).is_file()]
