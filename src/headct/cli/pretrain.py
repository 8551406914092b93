"""`headct pretrain`: unlabelled scans -> an encoder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headct.train.pretrain import Outcome
    from headct.train.watch import LabelledSubset


class Cluster(StrEnum):
    """Where `--submit` sends a run."""

    slurm = "slurm"
    local = "local"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("pretrain")(pretrain)


def pretrain(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of headct (demo, small, base, ...) or a TOML file.")
    ],
    store: Annotated[Path, typer.Option(help="Store of scans, as `headct ingest` makes it.")],
    out: Annotated[Path, typer.Option(help="RUN folder; made or gone on with.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on only: an error where RUN holds no run.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value; can be given again.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Label table: probes on these scans while training; learns nothing."),
    ] = None,
    labels_store: Annotated[
        Path | None, typer.Option(help="Store of the labelled scans; default: that of --store.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key file, where labels need it.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out labels of scans not in the store.")
    ] = False,
    submit: Annotated[
        Cluster | None, typer.Option(help="Run as a job, and come back after each time limit.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines of a job.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each machine of a job.")] = 0,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Ranks on each machine; default: one a GPU.")
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of each rank of a job.")] = 4,
    minutes: Annotated[int, typer.Option(min=1, help="Time limit of a turn of a job.")] = 1440,
) -> None:
    """Train an encoder on unlabelled scans: masked reconstruction and self-distillation.

    Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves and leaves; killed, it loses the steps since the
    last checkpoint. The same command goes on, to the same weights as if it had never stopped.

    \b
    Example: headct pretrain demo --store archive/pool --out run
    Other length: headct pretrain demo --set steps=100 --store archive/pool --out short
    Several GPUs: torchrun --standalone --nproc-per-node 4 --no-python
      headct pretrain base --store S --out R
    Sharded weights: add --set compute.strategy=fsdp
    Slurm: headct pretrain base --store S --out R --submit slurm --partition gpu --gpus 8
    """  # noqa: D301
    from headct.errors import UsageError

    call = Call(
        recipe,
        store,
        out,
        overrides=tuple(overrides or ()),
        threads=threads,
        labels=labels,
        labels_store=labels_store,
        key=key,
        allow_missing=allow_missing,
    )
    if resume and not (out / "config.toml").is_file():
        raise UsageError(f"{out.name} holds no run to resume", remedy="leave --resume out")
    if submit is not None:
        from headct.train.submit import Resources
        from headct.train.submit import submit as hand_over

        resources = Resources(nodes, gpus, tasks, minutes, partition, cpus)
        call.require_sound(resources.n_ranks)
        logs = out.absolute().with_name(f"{out.name}.jobs")
        job = hand_over(call.absolute(), logs, submit.value, resources)
        print(f"job {job}; logs in {logs}")
        return
    outcome = call.train()
    if outcome.is_main:
        print(_told(outcome, out))
    if outcome.status == "stopped":
        raise KeyboardInterrupt


def _told(outcome: Outcome, out: Path) -> str:
    if outcome.status == "stopped":
        return f"saved at step {outcome.step}"
    if outcome.status == "was-finished":
        return f"{out} is finished ({outcome.step} steps); nothing to do"
    return f"{outcome.step} steps, {outcome.seen_scans} scans seen; encoder in {out / 'bundle'}"


@dataclass(frozen=True)
class Call:
    """What was asked for; calling it trains, and says whether it was stopped before the end."""

    recipe: str
    store: Path
    out: Path
    overrides: tuple[str, ...]
    threads: int | None
    labels: Path | None
    labels_store: Path | None
    key: Path | None
    allow_missing: bool = False

    def __call__(self) -> bool:
        """As a job, which fails in the words and with the exit code of the command."""
        from headct.cli.failure import errors_told

        with errors_told():
            return self.train().status == "stopped"

    def train(self) -> Outcome:
        """In this process."""
        from headct.config import load_recipe
        from headct.train.pretrain import pretrain as train
        from headct.train.recipe import PretrainRecipe

        recipe = load_recipe(self.recipe, PretrainRecipe, self.overrides)
        watch = self._watch(recipe.seed)
        return train(recipe, self.store, self.out, threads=self.threads, watch=watch)

    def require_sound(self, n_ranks: int) -> None:
        """Raise and say, before a job waits, what the run would before its first step."""
        from headct.config import load_recipe
        from headct.store.store import open_store
        from headct.train.preflight import checked_plan
        from headct.train.recipe import PretrainRecipe

        recipe = load_recipe(self.recipe, PretrainRecipe, self.overrides)
        watch = self._watch(recipe.seed)
        plan = checked_plan(recipe, open_store(self.store), self.out, n_ranks, watch)
        for text in plan.left_out:
            print(text, file=sys.stderr)

    def absolute(self) -> Call:
        """The same from whatever folder it is called."""
        from dataclasses import replace

        places = ("store", "out", "labels", "labels_store", "key")
        found = {name: getattr(self, name) for name in places}
        recipe = str(Path(self.recipe).absolute()) if Path(self.recipe).is_file() else self.recipe
        return replace(
            self, recipe=recipe, **{name: path and path.absolute() for name, path in found.items()}
        )

    def _watch(self, seed: int) -> LabelledSubset | None:
        if self.labels is None:
            return None
        from headct.adapt.online import labelled_subset
        from headct.dicom.pseudonym import load_key
        from headct.store.labels import needs_key
        from headct.store.store import open_store

        secret = load_key(self.key) if needs_key(self.labels) else None
        store = open_store(self.labels_store or self.store)
        return labelled_subset(self.labels, store, secret, seed, allow_missing=self.allow_missing)
