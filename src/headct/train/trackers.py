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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from headct.atomic import write_json
from headct.errors import UsageError
from headct.train.recipe import PretrainRecipe

Row = Mapping[str, Any]
Sink = Callable[[Row], None]
IDS = "trackers.json"
PROJECT = "headct"
MLFLOW_URI = "MLFLOW_TRACKING_URI"
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Unless the environment says otherwise. By its own defaults a lost server holds a step for four
minutes, and Slurm waits three after its signal."""
REMEDIES = {
    "mlflow": f"Does its server answer at {MLFLOW_URI}?",
    "wandb": "Is there a network and a login (wandb login), or WANDB_MODE=offline?",
}
"""Of trackers that a network stands before."""
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
    names: Sequence[str], folder: Path, recipe: PretrainRecipe, first_step: int
) -> Iterator[list[Sink]]:
    """Sinks for rows of metrics; a run that goes on writes to where it wrote before.

    TensorBoard that is not installed is noted and left out, and so is a tracker that fails while
    the run goes on: metrics.jsonl has every line.

    Args:
        names: as in the recipe, checked by `require_trackers`.
        folder: RUN.
        recipe: of the run; shown as its settings.
        first_step: steps that are done; what was written of later ones does not count.

    Raises:
        UsageError: W&B or MLflow does not take a run that it has not seen before.
    """
    usable = [name for name in names if _is_installed(name)]
    if len(usable) < len(names):
        print("TensorBoard is not installed: pip install 'headct[track]'", file=sys.stderr)
    known = _known_ids(folder)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                _Tracker(name, OPENERS[name](folder, recipe, first_step), is_new=name not in known)
            )
            for name in usable
        ]


class _Tracker:
    """A sink until it fails; used in a `with` block, whose end tells it how the run ended."""

    def __init__(self, name: str, opened: AbstractContextManager[Sink], *, is_new: bool) -> None:
        self.name, self.opened, self.is_new = name, opened, is_new
        self._is_open = False
        self._sink: Sink | None = None

    def __enter__(self) -> Sink:
        try:
            self._sink = self.opened.__enter__()
            self._is_open = True
        except Exception as error:
            if self.name not in REMEDIES:  # a file in RUN: the disk is at fault
                raise
            if self.is_new:
                raise UsageError(
                    f"{self.name} does not take the run ({type(error).__name__})",
                    remedy=f"{REMEDIES[self.name]} Or leave it out of record.trackers",
                    code="tracker",
                ) from error
            self._leave_out(error)
        return self._send

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_open:
            return
        try:
            self.opened.__exit__(kind, error, trace)
        except Exception as own:
            if own is not error and self._sink is not None:
                self._leave_out(own)

    def _send(self, row: Row) -> None:
        if self._sink is None:
            return
        try:
            self._sink(row)
        except Exception as error:
            self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self._sink = None
        print(
            f"{self.name} failed ({type(error).__name__}) and is left out from here on;"
            " metrics.jsonl has every line",
            file=sys.stderr,
        )


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(LIBRARIES[name]) is not None


@contextmanager
def _tensorboard(folder: Path, _: PretrainRecipe, first_step: int) -> Iterator[Sink]:
    """An event file; its usual name would hold the name of the machine."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
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
        # steps that earlier files have from here on are done again: TensorBoard drops them
        start = SessionLog(status=SessionLog.START)
        write(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

        def sink(row: Row) -> None:
            values = [
                Summary.Value(tag=f"{group_of(name)}/{name}", simple_value=value)
                for name, value in numbers(row).items()
            ]
            write(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

        yield sink


@contextmanager
def _wandb(folder: Path, recipe: PretrainRecipe, _: int) -> Iterator[Sink]:
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
    run_id = _known_ids(folder).get("wandb") or secrets.token_hex(8)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=recipe.name,
        id=run_id,
        resume="allow",
        config=recipe.model_dump(mode="json"),
        dir=folder,
        settings=quiet,
    )
    _remember(folder, "wandb", run_id)
    try:
        yield lambda row: run.log(dict(numbers(row)), step=row["step"])
    finally:
        run.finish()


@contextmanager
def _mlflow(folder: Path, recipe: PretrainRecipe, _: int) -> Iterator[Sink]:
    for name, value in MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
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

    run_id = _known_ids(folder).get("mlflow") or create()
    _remember(folder, "mlflow", run_id)

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


def _remember(folder: Path, name: str, run_id: str) -> None:
    write_json(folder / IDS, _known_ids(folder) | {name: run_id})


def _known_ids(folder: Path) -> dict[str, str]:
    """Ids of the run, by tracker that has taken it."""
    file = folder / IDS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


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


OPENERS: dict[str, Callable[[Path, PretrainRecipe, int], AbstractContextManager[Sink]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
