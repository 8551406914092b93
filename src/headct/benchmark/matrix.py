"""Run a benchmark: features once per encoder, then every task, resumable at any job.

BENCH/  features/   ENCODER.parquet, and ENCODER.tokens/ where a method reads tokens
        tasks/      ENCODER.METHOD.LABELS.SEED[@SITE]/: a task each
        jobs/       what each finished task was made from, and what went wrong with the others
        eval/       `headct evaluate` of all tasks together; with train_sites eval/SITE/ of each
        benchmark.parquet   one row per number
"""

from __future__ import annotations

from pathlib import Path

from headct.adapt.task import TASK_JSON
from headct.benchmark.encoders import prepare
from headct.benchmark.jobs import Failed, Work, do_job, labels_of, lost_job
from headct.benchmark.spec import BenchmarkSpec
from headct.progress import tracking
from headct.store.store import open_store
from headct.workers import run_in_order


def run_matrix(spec: BenchmarkSpec, out: Path, jobs: int) -> list[Failed]:
    """Do every job that is not done yet.

    Args:
        spec: the matrix.
        out: BENCH folder.
        jobs: tasks that run side by side, in processes of one thread; 0: in this process.

    Returns:
        Jobs that failed; the others are done.

    Raises:
        LabelError: the label table cannot be used, or has no train scan of a training site.
        HeadctError: an encoder cannot be used.
    """
    todo = list(spec.jobs())
    for site in spec.train_sites or ("",):  # faults are said once, before hours of work
        labels_of(spec, open_store(spec.store), 0, site)
    for name in dict.fromkeys(job.encoder for job in todo if job.encoder):
        prepare(spec, out, name, {spec.methods[j.method].verb for j in todo if j.encoder == name})
    failed = []
    works = [Work(spec, out, job) for job in todo]
    with tracking("benchmark", len(todo), "tasks") as tracker:
        for result in run_in_order(do_job, works, jobs, lost_job):
            if result is not None:
                failed.append(result)
            tracker.advance()
    return failed


def task_folders(spec: BenchmarkSpec, out: Path, train_site: str = "") -> list[Path]:
    """Folders of the tasks of a training site (none: of all sites together) that are done."""
    jobs = [job for job in spec.jobs() if job.train_site == train_site]
    folders = [out / "tasks" / job.name for job in jobs]
    return [folder for folder in folders if (folder / TASK_JSON).is_file()]
