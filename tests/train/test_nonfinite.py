"""A step that is not finite is skipped, whatever is measured, drawn or probed in it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from headct.adapt.online import labelled_subset
from headct.errors import TrainingError
from headct.model.embed import Embedding
from headct.run import read_jsonl
from headct.store.store import open_store
from headct.train.feed import Feed
from headct.train.hooks import MetricsWriter
from headct.train.loop import StepRecord
from headct.train.pretrain import pretrain

from .tiny import N_SCANS, make_store, recipe

ALL_EACH_STEP = {"metrics_every": 1, "panel_every": 1, "probe_every": 1, "checkpoint_every": 3}
TERMS = {
    "decoder": {"width": 24, "heads": 2, "depth": 1},
    "lat": {"weight": 0.3, "ramp": (0, 0)},
    "gram": {"weight": 0.1, "anchor_fraction": 0.0, "ramp": (0, 0)},
}
CLS = {"weight": 0.2, "ramp": (0, 0), "hidden": 32, "out": 16}
BAD_STEP = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("nonfinite") / "store")


@pytest.fixture(scope="module")
def watch(store, tmp_path_factory):
    table = tmp_path_factory.mktemp("labels") / "labels.csv"
    lines = [f"c-{i:016x},{'train' if i < 10 else 'tune'},{i % 2}" for i in range(N_SCANS)]
    table.write_text("\n".join(["scan_id,split,sdh", *lines]) + "\n")
    return labelled_subset(table, open_store(store))


def with_every_term(objective, **changes):
    terms = TERMS | {"cls": CLS | {"objective": objective}}
    return recipe(batch=16, objective=terms, record=ALL_EACH_STEP, **changes)


@pytest.mark.parametrize("objective", ["coding-rate", "sinkhorn", "centring"])
def test_a_step_whose_metrics_are_due(store, watch, tmp_path, monkeypatch, objective):
    real, poisoned, scan_ids = Feed._make, [], open_store(store).scan_ids

    def make(self, number, batch):
        made = real(self, number, batch)
        if number == BAD_STEP - 1:
            made.views.globals_hu.fill_(math.nan)
            poisoned.extend(scan_ids[row] for row in batch.rows)
        return made

    monkeypatch.setattr(Feed, "_make", make)
    run = tmp_path / "run"
    outcome = pretrain(with_every_term(objective, steps=6), store, run, threads=1, watch=watch)
    assert (outcome.status, outcome.step) == ("finished", 6)
    assert list(read_jsonl(run / "nonfinite.jsonl")) == [
        {"step": BAD_STEP, "rank": 0, "scan_ids": poisoned}
    ]
    rows = {row["step"]: row for row in read_jsonl(run / "metrics.jsonl")}
    assert [step for step, row in rows.items() if not row["applied"]] == [BAD_STEP]
    assert {rows[BAD_STEP][name] for name in ("loss", "cls_std", "effective_rank")} == {None}
    assert None not in rows[BAD_STEP + 1].values()


def test_weights_that_give_no_number_stop_the_run_each_time(store, watch, tmp_path):
    how = with_every_term("sinkhorn", optim={"lr": 1e25, "warmup_fraction": 0.0}, steps=40)
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(TrainingError, match="times in a row") as stopped:
            pretrain(how, store, run, threads=1, watch=watch)
        assert stopped.value.code == "nonfinite-loss"
    *_, last = read_jsonl(run / "metrics.jsonl")
    assert {last[name] for name in ("loss", "effective_rank", "probe_knn_auroc")} == {None}
    assert len(list(read_jsonl(run / "nonfinite.jsonl"))) >= how.max_skipped_in_a_row
    assert (run / "panels" / f"step-{last['step']:08d}.png").is_file()


def test_vectors_that_are_not_finite_have_no_score(watch):
    x = np.ones((len(watch.rows), 3), np.float32)
    x[-1, 0] = math.inf
    scores = watch.score(Embedding(x, x, x, x[:, None]))
    assert set(scores) == {"probe_linear_auroc", "probe_knn_auroc"}
    assert all(math.isnan(score) for score in scores.values())


def test_what_is_measured_besides_is_null_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write = MetricsWriter(
        path,
        lambda _: True,
        measure=lambda _: {"mfu": math.inf},
        found=lambda _: {"probe_knn_auroc": math.nan},
    )
    write(SimpleNamespace(seen_scans=4), StepRecord(1, {"loss": 1.0}, {}, 1.0, True, 4, 1.0, 0, ()))
    (row,) = read_jsonl(path)
    assert (row["loss"], row["mfu"], row["probe_knn_auroc"]) == (1.0, None, None)


def test_a_run_that_ends_with_ruined_weights_has_no_bundle(store, tmp_path):
    how = recipe(steps=3, optim={"lr": 1e25, "warmup_fraction": 0.0})
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(TrainingError, match="no finite numbers") as stopped:
            pretrain(how, store, run, threads=1)
        assert stopped.value.code == "nonfinite-encoder"
    *_, last = read_jsonl(run / "events.jsonl")
    assert (last["event"], last["reason"]) == ("failed", "nonfinite-encoder")
    assert not (run / "bundle").exists()
