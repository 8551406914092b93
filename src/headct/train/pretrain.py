"""`headct pretrain`: a store of scans -> RUN/ with metrics, checkpoints, panels and a bundle.

RUN/config.toml       the resolved recipe
RUN/run.json          versions, seed, commit, command
RUN/events.jsonl      started, resumed, stopped, finished, failed, a scan unreadable: in which step
RUN/metrics.jsonl     terms, guards and schedules by step
RUN/nonfinite.jsonl   scans of steps that were not applied, where there were any
RUN/checkpoints/      the last few, whole or absent
RUN/panels/           input, mask, reconstruction
RUN/tensorboard/      the metrics again, for TensorBoard
RUN/bundle/           the encoder for use; there when the run is finished
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headct import __version__
from headct.errors import TrainingError
from headct.model.bundle import is_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.objective.joint import JointObjective
from headct.run import git_commit, read_jsonl, write_run_record
from headct.store.store import Store, open_store
from headct.train.checkpoint import (
    Checkpoint,
    agreed_checkpoint,
    remove_leftovers,
    restore,
    set_damaged_aside,
)
from headct.train.distribute import prepare, share_gradients, whole
from headct.train.events import Events
from headct.train.feed import Feed, PretrainBatch
from headct.train.fitting import out_of_memory, require_memory
from headct.train.hooks import trim_steps
from headct.train.loop import LoopConfig, TrainState, fit
from headct.train.observe import Observed
from headct.train.optim import make_optimizer
from headct.train.preflight import checked_plan, only_writer
from headct.train.recipe import PretrainRecipe
from headct.train.runtime import Runtime, StopRequest, start_runtime
from headct.train.saving import Checkpointer
from headct.train.speed import find_peak
from headct.train.watch import LabelledSubset
from headct.views.loader import ScanLoader


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        status: finished now, finished by an earlier call, or stopped by a signal.
        step: steps done.
        seen_scans: scans of the whole run.
        is_main: whether this rank is the one that speaks for all.
    """

    status: Literal["finished", "was-finished", "stopped"]
    step: int
    seen_scans: int
    is_main: bool = True


def pretrain(
    recipe: PretrainRecipe,
    store_path: str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    watch: LabelledSubset | None = None,
) -> Outcome:
    """Train, or go on where an earlier call with the same recipe and store stopped.

    Args:
        recipe: everything that decides what is learned.
        store_path: the scans.
        out: RUN folder.
        threads: CPU threads of this process.
        watch: labelled scans that the encoder is probed with; they change nothing.

    Raises:
        StoreError: no store, or an empty one.
        UsageError: the recipe contradicts itself or the grid of the store.
        TrainingError: the GPU is too small; the message has the memory needed and what would fit.
        MismatchError: RUN holds a run of another recipe or store; the grid is another one.
        CheckpointError: another process trains into RUN, or its checkpoint is of another model.
        TrainingError: too many unreadable scans or steps that are not finite, or a rank is lost.
    """
    folder = Path(out)
    store = open_store(store_path)
    # signals are held until the ranks have parted: what a lost one leads to has to be said
    with ExitStack() as last, ExitStack() as stack:
        compute = recipe.compute
        runtime = stack.enter_context(
            start_runtime(recipe.precision, threads, compute.rank_timeout_s)
        )
        run = PretrainRun(recipe, store, folder, runtime, watch)
        runtime.barrier()  # all have looked at RUN before the main rank writes there
        if runtime.is_main:
            stack.enter_context(only_writer(folder))
        stop = last.enter_context(StopRequest().listening())
        return run.go(stop)


class PretrainRun:
    """One run on one rank: its parts, checked against each other before the first step."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        store: Store,
        folder: Path,
        runtime: Runtime,
        watch: LabelledSubset | None = None,
    ) -> None:
        plan = checked_plan(recipe, store, folder, runtime.world_size, watch)
        self.recipe, self.store, self.folder, self.runtime = recipe, store, folder, runtime
        self.loader = ScanLoader(
            store,
            plan.n_scans,
            recipe.seed,
            rank=runtime.rank,
            world_size=runtime.world_size,
            accumulate=recipe.accumulate,
            max_unreadable_fraction=recipe.max_unreadable_fraction,
            readers=recipe.compute.readers,
        )
        if (free := runtime.free_memory()) is not None:
            require_memory(recipe, plan.maker, free, runtime.world_size, runtime.dtype)
        self.feed = Feed(self.loader, plan.maker, recipe, runtime.device)
        self.events = Events(folder, runtime)
        self.watch = watch
        torch.manual_seed(recipe.seed)
        self.objective = self._make_objective()
        self.forward = prepare(self.objective, recipe.compute, runtime)
        self.state = TrainState(self.objective, make_optimizer(self.objective, recipe.optim))
        self.identity, self.left_out = plan.identity, plan.left_out
        self.checkpoints = Checkpointer(
            folder / "checkpoints",
            self.identity,
            recipe.record.checkpoint_every,
            recipe.record.keep_checkpoints,
            runtime,
        )

    def go(self, stop: StopRequest) -> Outcome:
        """Restore, train, save, and write the bundle at the end."""
        with self._failure_noted():
            saved = agreed_checkpoint(self.checkpoints.folder, self.runtime)
            if saved is not None:
                restore(self.state, saved, self.identity)
        self.checkpoints.saved_step = self.state.step if saved else -1
        if is_bundle(self.folder / "bundle") and self._is_done:
            return self._outcome("was-finished")
        self.peak = find_peak(self.runtime)
        self._note_start(saved)
        with self._failure_noted():
            with self.checkpoints:
                self._train(stop)
                self.checkpoints.save(self.state)
            if self._is_done:
                self._write_bundle()
                self._tell_if_nothing_was_learned()
        status: Literal["finished", "stopped"] = "finished" if self._is_done else "stopped"
        self.events.note(status, self.state.step)
        return self._outcome(status)

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            told = out_of_memory(self.recipe, self.state.step)
            self.events.failed(self.state.step, told)
            raise told from error
        except Exception as error:
            self.events.failed(self.state.step, error)
            raise

    def _make_objective(self) -> JointObjective:
        objective = JointObjective(self.recipe.objective, self.recipe.encoder)
        return objective.to(self.runtime.device)

    def _whole_objective(self) -> JointObjective | None:
        """With all weights, on the main rank; all ranks must ask together."""
        full = whole(self.objective, self._make_objective, self.runtime)
        assert full is None or isinstance(full, JointObjective)
        return full

    def _train(self, stop: StopRequest) -> None:
        recipe, state = self.recipe, self.state
        with ExitStack() as stack:
            hooks = stack.enter_context(self._observed().hooks(state.step))
            batches = stack.enter_context(self.feed.batches(state.step))
            self.objective.train()
            fit(
                state,
                batches,
                self._losses,
                recipe.optim.schedule(recipe.steps),
                LoopConfig(
                    recipe.steps,
                    recipe.seed,
                    recipe.optim.clip_norm,
                    recipe.accumulate,
                    recipe.max_skipped_in_a_row,
                ),
                self.runtime,
                after_step=lambda now: self.objective.after_step(now["momentum"]),
                after_skip=self.objective.after_skip,
                share_gradients=lambda share: share_gradients(self.forward, share),
                hooks=[*hooks, self.checkpoints],
                stop=stop,
            )

    def _losses(self, batch: PretrainBatch, step: int) -> dict[str, Tensor]:
        written = self.recipe.record.writes(step + 1)
        terms: dict[str, Tensor] = self.forward(
            batch.views, step / self.recipe.steps, with_rank=written
        )
        return terms

    def _observed(self) -> Observed:
        return Observed(
            self.recipe,
            self.folder,
            self.runtime,
            self.feed,
            self.store.scan_ids,
            self.events,
            self._whole_objective,
            self.peak,
            self.watch,
        )

    def _write_bundle(self) -> None:
        objective = self._whole_objective()
        encoder = None
        if objective is not None:
            wants_student = self.recipe.bundle_weights == "student"
            encoder = objective.student if wants_student else objective.bundle_encoder()
        if not self.runtime.from_main(int(encoder is None or self._gives_numbers(encoder))):
            raise TrainingError(
                "the trained encoder gives no finite numbers, so that there is no bundle",
                remedy="lower optim.lr and optim.muon_lr, or set precision=fp32, and start in a new"
                " --out",
                code="nonfinite-encoder",
            )
        if encoder is not None:
            save_bundle(
                self.folder / "bundle", encoder, self.store.preprocessing, self._provenance()
            )
        self.runtime.barrier()

    def _tell_if_nothing_was_learned(self) -> None:
        rows = read_jsonl(self.folder / "metrics.jsonl") if self.runtime.is_main else ()
        shares = [row.get("brain_error_share") for row in rows]
        if shares and (shares[-1] or 0.0) > 1.0:
            print(
                f"nothing was learned yet: brain was guessed with {shares[-1]:.1f} times the error"
                " of the best constant picture; a lower rate, or more steps",
                file=sys.stderr,
            )

    @torch.no_grad()
    def _gives_numbers(self, encoder: ViT3D) -> bool:
        """Weights can be ruined by a last step whose own loss was finite."""
        views = self.feed.first_views(1)
        hu, keep = views.globals_hu.flatten(0, 1), views.keep.flatten(0, 1)
        tokens = encoder.eval().forward_hu(hu, views.spacing_mm_zyx, keep)
        return bool(tokens.cls.isfinite().all())

    def _provenance(self) -> dict[str, Any]:
        recipe = self.recipe
        has_teacher = self.objective.teacher is not None and recipe.bundle_weights == "teacher"
        return {
            "recipe": recipe.name,
            "recipe_hash": recipe.hash,
            "seed": recipe.seed,
            "weights": "teacher" if has_teacher else "student",
            "steps": self.state.step,
            "seen_scans": self.state.seen_scans,
            "skipped_steps": self.state.skipped_steps,
            "store_scans": len(self.store),
            "store_hash": self.identity["store"],
            "unreadable_scans": self.events.count_unreadable(),
            "precision": str(self.runtime.dtype).removeprefix("torch."),
            "headct": __version__,
            "git_commit": git_commit(),
        }

    def _note_start(self, saved: Checkpoint | None) -> None:
        if not self.runtime.is_main:
            return
        remove_leftovers(self.checkpoints.folder)
        if saved is None:
            write_run_record(self.folder, self.recipe, seed=self.recipe.seed, verb="pretrain")
        for name in ("metrics.jsonl", "nonfinite.jsonl"):
            trim_steps(self.folder / name, self.state.step)
        self.events.forget_unreadable(after=self.state.step)
        self.events.tell_what_differs()
        for text in self.left_out:
            print(text, file=sys.stderr)
        peak = {"peak_tflops": self.peak.flops / 1e12, "peak_from": self.peak.source}
        more: dict[str, Any] = peak | {"left_out": self.left_out}
        if saved is not None:
            more["damaged_checkpoints"] = set_damaged_aside(self.checkpoints.folder, saved)
        self.events.note("started" if saved is None else "resumed", self.state.step, more)

    @property
    def _is_done(self) -> bool:
        return self.state.step >= self.recipe.steps

    def _outcome(self, status: Literal["finished", "was-finished", "stopped"]) -> Outcome:
        return Outcome(status, self.state.step, self.state.seen_scans, self.runtime.is_main)
