"""The lines of metrics.jsonl, also in TensorBoard, Weights & Biases or MLflow.

Only numbers by step, and the recipe, go there: no paths, no scans, and nothing about the machine or
its user that these tools would add by themselves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from headct.atomic import write_json
from headct.errors import UsageError
from headct.train.recipe import PretrainRecipe

Name = Literal["tensorboard", "wandb", "mlflow"]
Row = Mapping[str, Any]
Sink = Callable[[Row], None]
IDS = "trackers.json"
PROJECT = "headct"
MLFLOW_URI = "MLFLOW_TRACKING_URI"
LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def require_trackers(names: Sequence[str]) -> None:
    """Raise where a tracker cannot be used; TensorBoard, there by default, may be missing.

    Raises:
        UsageError: W&B or MLflow is asked for and not installed, or where MLflow is is not said.
    """
    if wanted := [name for name in names if name != "tensorboard" and not _is_installed(name)]:
        raise UsageError(
            f"not installed: {', '.join(wanted)}",
            remedy="pip install 'headct[track]', or --set record.trackers=[]",
        )
    if "mlflow" in names and not os.environ.get(MLFLOW_URI):
        raise UsageError("where is MLflow?", remedy=f"set {MLFLOW_URI}, e.g. http://host:5000")


@contextmanager
def open_trackers(
    names: Sequence[str], folder: Path, recipe: PretrainRecipe
) -> Iterator[list[Sink]]:
    """Sinks for rows of metrics; a run that goes on writes to where it wrote before.

    TensorBoard that is not installed is noted and left out.

    Args:
        names: as in the recipe, checked by `require_trackers`.
        folder: RUN.
        recipe: of the run; shown as its settings.
    """
    usable = [name for name in names if _is_installed(name)]
    if len(usable) < len(names):
        print("TensorBoard is not installed: pip install 'headct[track]'", file=sys.stderr)
    with ExitStack() as stack:
        yield [stack.enter_context(OPENERS[name](folder, recipe)) for name in usable]


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(LIBRARIES[name]) is not None


@contextmanager
def _tensorboard(folder: Path, _: PretrainRecipe) -> Iterator[Sink]:
    """An event file; its usual name would hold the name of the machine."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    where = folder / "tensorboard"
    where.mkdir(parents=True, exist_ok=True)
    number = len(list(where.iterdir()))
    with (where / f"events.out.tfevents.{int(time.time())}.{number:06d}").open("wb") as file:
        writer = RecordWriter(file)

        def write(event: Any) -> None:
            writer.write(event.SerializeToString())
            writer.flush()

        write(Event(wall_time=time.time(), file_version="brain.Event:2"))

        def sink(row: Row) -> None:
            values = [
                Summary.Value(tag=f"{group_of(name)}/{name}", simple_value=value)
                for name, value in numbers(row).items()
            ]
            write(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

        yield sink


@contextmanager
def _wandb(folder: Path, recipe: PretrainRecipe) -> Iterator[Sink]:
    import wandb

    quiet = wandb.Settings(
        disable_git=True,
        disable_code=True,
        save_code=False,
        silent=True,
        console="off",
        host="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=recipe.name,
        id=_id(folder, "wandb", lambda: secrets.token_hex(8)),
        resume="allow",
        config=recipe.model_dump(mode="json"),
        dir=folder,
        settings=quiet,
    )
    try:
        yield lambda row: run.log(dict(numbers(row)), step=row["step"])
    finally:
        run.finish()


@contextmanager
def _mlflow(folder: Path, recipe: PretrainRecipe) -> Iterator[Sink]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(os.environ[MLFLOW_URI])

    def create() -> str:
        found = client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(PROJECT)
        run_id: str = client.create_run(experiment, run_name=recipe.name).info.run_id
        params = [Param(key, json.dumps(value)) for key, value in recipe.settings().items()]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    run_id = _id(folder, "mlflow", create)

    def sink(row: Row) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, row["step"]) for name, value in numbers(row).items()]
        client.log_batch(run_id, metrics=metrics)

    status = "FAILED"
    try:
        yield sink
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)


def _id(folder: Path, name: str, create: Callable[[], str]) -> str:
    """The id of the run in a tracker, made once and kept in RUN."""
    file = folder / IDS
    ids = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if name not in ids:
        ids[name] = create()
        write_json(file, ids)
    return str(ids[name])


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row but for the step; what was not finite is left out."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


SPEED = {"seen_scans", "scans_per_s", "wait_share", "mfu", "tflops", "eta_s", "peak_memory_gib"}


def group_of(name: str) -> str:
    """The section of a chart."""
    if name == "loss" or name.endswith("_loss"):
        return "loss"
    if name.startswith("probe_"):
        return "probe"
    if name in ("lr", "weight_decay", "momentum"):
        return "schedule"
    if name in SPEED:
        return "speed"
    return "guards"


OPENERS: dict[str, Callable[[Path, PretrainRecipe], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
