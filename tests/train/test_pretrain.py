import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headct.cli.pretrain import Call
from headct.config import load_recipe, to_toml
from headct.errors import (
    CheckpointError,
    HeadctError,
    MismatchError,
    StoreError,
    TrainingError,
    UsageError,
)
from headct.model.bundle import load_bundle
from headct.run import read_jsonl
from headct.store.lock import WriterLock
from headct.train import pretrain as module
from headct.train.checkpoint import latest_checkpoint
from headct.train.panel import write_panel
from headct.train.preflight import what_is_left_out
from headct.train.pretrain import pretrain
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import Preprocessing, Stretch

from .saved import tensors_of
from .tiny import GRID, RECIPE, make_store, recipe

VARYING = {"scans_per_s", "wait_share", "mfu", "tflops", "eta_s", "peak_memory_gib"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    outcome = pretrain(recipe(), store, folder, threads=1)
    assert (outcome.status, outcome.step, outcome.seen_scans) == ("finished", 12, 48)
    return folder


def losses(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in VARYING} for row in rows]


def last_state(folder):
    return tensors_of(latest_checkpoint(folder / "checkpoints").folder)


def assert_same_run(one, other):
    assert losses(one) == losses(other)
    a, b = last_state(one), last_state(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    weights = [load_file(folder / "bundle" / "encoder.safetensors") for folder in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def stop_after(step, monkeypatch):
    """A run that is asked to stop, as by a signal, after a step."""

    class Request(module.StopRequest):
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls >= step

    monkeypatch.setattr(module, "StopRequest", Request)


def test_the_run_folder_holds_what_the_design_says(whole):
    names = {path.name for path in whole.iterdir()} - {".lock"}
    assert names == {
        "config.toml",
        "run.json",
        "events.jsonl",
        "metrics.jsonl",
        "checkpoints",
        "panels",
        "bundle",
        "tensorboard",
    }
    assert load_recipe(whole / "config.toml", PretrainRecipe) == recipe()
    assert json.loads((whole / "run.json").read_text())["seed"] == 3
    assert [p.name for p in sorted((whole / "panels").iterdir())] == [
        "step-00000006.png",
        "step-00000012.png",
    ]
    assert [row["event"] for row in read_jsonl(whole / "events.jsonl")] == ["started", "finished"]
    assert len(list((whole / "checkpoints").iterdir())) == 2


def test_both_objectives_are_in_the_run_and_logged(whole):
    rows = losses(whole)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert "lat_loss" not in rows[0]
    assert {
        "mae_loss",
        "lat_loss",
        "cls_loss",
        "cls_std",
        "effective_rank",
        "lr",
        "momentum",
        "gradient_norm",
    } <= rows[-1].keys()
    assert rows[-1]["mae_loss"] < rows[0]["mae_loss"]


def test_the_effective_rank_is_computed_for_written_lines_alone(store, tmp_path, monkeypatch):
    asked, real = [], module.JointObjective.losses

    def losses(self, views, fraction, *, with_rank):
        asked.append(with_rank)
        return real(self, views, fraction, with_rank=with_rank)

    monkeypatch.setattr(module.JointObjective, "losses", losses)
    record = {"metrics_every": 3, "panel_every": 0}
    pretrain(recipe(steps=7, record=record), store, tmp_path / "run", threads=1)
    rows = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 3, 6]
    assert all("effective_rank" in row for row in rows)
    assert asked == [True, False, True, False, False, True, False]


def test_speed_time_left_and_memory_are_in_the_metrics(whole):
    rows = list(read_jsonl(whole / "metrics.jsonl"))
    assert all(row["mfu"] > 0 and row["tflops"] > 0 for row in rows)
    assert rows[-1]["eta_s"] == 0 < rows[0]["eta_s"]
    assert all(0 < row["wait_share"] < 1 for row in rows)
    assert 0.05 < rows[-1]["peak_memory_gib"] < 10
    event = next(iter(read_jsonl(whole / "events.jsonl")))
    assert (event["peak_from"], event["peak_tflops"] > 0) == ("measured", True)
    assert event["no_kernels"] == ("no GPU" if event["device"] == "cpu" else None)


def test_a_gpu_too_small_is_an_error_before_the_first_step(store, tmp_path, monkeypatch):
    monkeypatch.setattr("headct.train.runtime.Runtime.free_memory", lambda _: 2**29)
    refused(TrainingError, "0.5 GiB are free", recipe(), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_bundle_is_the_teacher_and_works(whole, store):
    bundle = load_bundle(whole / "bundle")
    assert bundle.preprocessing.hash == GRID.hash
    state = last_state(whole)
    for name, weight in bundle.encoder.state_dict().items():
        assert torch.equal(weight, state[f"module.teacher.{name}"]), name
    provenance = json.loads((whole / "bundle" / "bundle.json").read_text())["provenance"]
    assert (provenance["steps"], provenance["seen_scans"], provenance["weights"]) == (
        12,
        48,
        "teacher",
    )
    hu = module.open_store(store).read_hu([0, 1])
    assert torch.isfinite(bundle.encode_hu(torch.from_numpy(hu)).cls).all()


@pytest.mark.parametrize("step", [1, 5, 11])
def test_stopped_and_gone_on_is_bitwise_the_uninterrupted_run(
    whole, store, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        stopped = pretrain(recipe(), store, tmp_path / "run", threads=1)
    assert (stopped.status, stopped.step) == ("stopped", step)
    assert not (tmp_path / "run" / "bundle").exists()
    assert pretrain(recipe(), store, tmp_path / "run", threads=1).status == "finished"
    assert_same_run(whole, tmp_path / "run")


def test_from_an_older_checkpoint_it_is_the_same_run(whole, store, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(8, patch)
        pretrain(recipe(), store, tmp_path / "run", threads=1)
    (newest,) = max((tmp_path / "run" / "checkpoints").iterdir()).glob("shard*")
    newest.write_bytes(newest.read_bytes()[:-100])
    pretrain(recipe(), store, tmp_path / "run", threads=1)
    assert "trying the one before" in capsys.readouterr().err
    assert_same_run(whole, tmp_path / "run")
    (resumed,) = (e for e in read_jsonl(tmp_path / "run/events.jsonl") if e["event"] == "resumed")
    assert resumed["damaged_checkpoints"] == ["step-00000008"]


def test_a_run_whose_checkpoints_are_all_damaged_says_so_in_its_events(
    store, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        pretrain(recipe(), store, tmp_path / "run", threads=1)
    for shard in (tmp_path / "run" / "checkpoints").glob("*/shard*"):
        shard.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1"):
        pretrain(recipe(), store, tmp_path / "run", threads=1)
    *_, last = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert (last["event"], last["reason"]) == ("failed", "checkpoint")


@pytest.mark.parametrize("lost", ["encoder.safetensors", "README.md"])
def test_an_incomplete_bundle_of_a_finished_run_is_made_again(whole, store, tmp_path, lost):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "bundle" / lost).unlink()
    assert pretrain(recipe(), store, run, threads=1).status == "finished"
    assert load_bundle(run / "bundle").hash == load_bundle(whole / "bundle").hash


def test_a_finished_run_is_left_alone(whole, store):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert pretrain(recipe(), store, whole, threads=1).status == "was-finished"
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert {p for p in before if before[p] != after[p]} <= {whole / ".lock"}


def test_killed_before_the_bundle_only_the_bundle_is_made(whole, store, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_bundle", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe(), store, tmp_path / "run", threads=1)
    assert pretrain(recipe(), store, tmp_path / "run", threads=1).status == "finished"
    assert_same_run(whole, tmp_path / "run")


def test_micro_batches_learn_from_the_same_scans(store, tmp_path):
    split = recipe(
        steps=2,
        accumulate=2,
        views={"pose": {"zoom": 0}},
        objective={
            "cls": {"weight": 0},
            "lat": {"weight": 0},
            "decoder": {"width": 24, "heads": 2, "depth": 1},
        },
    )
    outcome = pretrain(split, store, tmp_path / "run", threads=1)
    assert outcome.seen_scans == 8


def refused(error: type[HeadctError], match: str, *arguments):
    with pytest.raises(error, match=match):
        pretrain(*arguments, threads=1)


def test_another_recipe_into_the_same_run_is_an_error(whole, store):
    refused(
        MismatchError,
        "different: optim.lr, steps",
        recipe(steps=13, optim={"lr": 0.5}),
        store,
        whole,
    )


def test_what_is_only_recorded_may_change(whole, store):
    changed = recipe(record={"checkpoint_every": 100})
    assert pretrain(changed, store, whole, threads=1).status == "was-finished"


def test_another_store_into_the_same_run_is_an_error(whole, tmp_path):
    other = make_store(tmp_path / "other", seed=1)
    refused(MismatchError, "another store", recipe(), other, whole)


def test_a_store_of_another_preprocessing_into_the_same_run_is_an_error(whole, tmp_path):
    grid = GRID.model_copy(update={"vertex_margin_mm": 3.0})
    other = make_store(tmp_path / "other", grid=grid)
    match = f"another preprocessing and store .*{GRID.hash}, now {grid.hash}"
    refused(MismatchError, match, recipe(), other, whole)


def test_no_memory_left_is_said_with_a_remedy(store, tmp_path, monkeypatch):
    def losses(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module.JointObjective, "losses", losses)
    with pytest.raises(TrainingError, match="after step 0") as told:
        pretrain(recipe(), store, tmp_path / "run", threads=1)
    assert "accumulate=2" in told.value.remedy


def test_an_empty_store_is_an_error(tmp_path):
    refused(StoreError, "no scans", recipe(), make_store(tmp_path / "empty", n=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_grid_is_an_error(tmp_path):
    grid = Preprocessing(shape_zyx=(16, 16, 16), spacing_mm_zyx=(4.0, 8.0, 8.0))
    refused(MismatchError, "4.0", recipe(), make_store(tmp_path / "s", 4, grid), tmp_path / "run")


def test_positions_for_other_patches_than_the_store_has_are_an_error(store, tmp_path):
    encoder = RECIPE["encoder"] | {"position_grid_zyx": (2, 4, 4)}
    learned = recipe(encoder=encoder, views={"crop": {"stretch": True}})
    refused(MismatchError, "(4, 4, 4)", learned, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_positions_in_mm_on_stretched_heads_are_an_error(tmp_path):
    cube = GRID.model_copy(update={"stretched": Stretch()})
    refused(MismatchError, "in mm", recipe(), make_store(tmp_path / "s", 4, cube), tmp_path / "run")


def test_a_patch_that_does_not_divide_is_an_error(tmp_path):
    grid = Preprocessing(shape_zyx=(16, 18, 16), spacing_mm_zyx=(8.0, 8.0, 8.0))
    refused(
        UsageError, "do not divide", recipe(), make_store(tmp_path / "s", 4, grid), tmp_path / "run"
    )


def test_a_crop_larger_than_the_field_of_view_is_an_error(store, tmp_path):
    wide = recipe(views={"crop": {"local_mm": 400.0}})
    refused(UsageError, "larger than the field of view", wide, store, tmp_path / "run")


def test_a_folder_that_is_no_run_is_an_error(store, tmp_path):
    (tmp_path / "letter.txt").write_text("dear all")
    refused(UsageError, "holds no run", recipe(), store, tmp_path)


def test_crops_of_one_patch_are_an_error_where_they_are_masked(tmp_path):
    grid = Preprocessing(shape_zyx=(8, 8, 8), spacing_mm_zyx=GRID.spacing_mm_zyx)
    tiny = recipe(views={"crop": {"global_fraction": (0.5, 1.0), "n_local": 0}})
    store = make_store(tmp_path / "s", 4, grid)
    refused(UsageError, "a single patch", tiny, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_koleo(**changes):
    cls = {"weight": 0.2, "ramp": (0, 0), "hidden": 32, "out": 16, "objective": "sinkhorn"}
    terms = {"decoder": {"width": 24, "heads": 2, "depth": 1}, "cls": cls | changes.pop("cls", {})}
    return recipe(**({"batch": 16, "steps": 2, "objective": terms} | changes))


@pytest.mark.parametrize(
    ("changes", "n_scans"),
    [({}, None), ({"accumulate": 2}, 8), ({"batch": 15}, 15)],
)
def test_koleo_is_told_where_it_is_left_out(store, tmp_path, monkeypatch, capsys, changes, n_scans):
    told, real = [], module.fit

    def fit(*arguments, **how):
        told.append(capsys.readouterr().err)
        return real(*arguments, **how)

    monkeypatch.setattr(module, "fit", fit)
    pretrain(with_koleo(**changes), store, tmp_path / "run", threads=1)
    started = next(read_jsonl(tmp_path / "run" / "events.jsonl"))
    rows = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert all(("koleo_loss" in row) is (n_scans is None) for row in rows)
    assert ("KoLeo is left out" in told[0]) is (n_scans is not None)
    assert len(started["left_out"]) == (n_scans is not None)
    for text in started["left_out"]:
        assert text in told[0]
        assert f"a rank has {n_scans} " in text


def test_koleo_that_is_left_out_is_told_to_who_queues_the_run(store, tmp_path, capsys):
    (tmp_path / "r.toml").write_text(to_toml(with_koleo()))
    call = Call(str(tmp_path / "r.toml"), store, tmp_path / "run", (), 1, None, None, None)
    call.require_sound(1)
    assert capsys.readouterr().err == ""
    call.require_sound(2)
    assert "a rank has 8 (16 in 2 ranks x 1 micro-batches)" in capsys.readouterr().err


def test_koleo_is_left_out_by_more_ranks_and_where_that_is_meant_nothing_is_said():
    assert not what_is_left_out(with_koleo(), 1)
    (text,) = what_is_left_out(with_koleo(), 2)
    assert "a rank has 8 (16 in 2 ranks x 1 micro-batches)" in text
    assert "--set objective.cls.sinkhorn.koleo=0" in text
    assert not what_is_left_out(with_koleo(cls={"sinkhorn": {"koleo": 0}}), 2)
    assert not what_is_left_out(recipe(), 2)


def test_a_batch_that_cannot_be_shared_is_an_error(store, tmp_path):
    refused(UsageError, "cannot be shared", recipe(accumulate=3), store, tmp_path / "run")


def test_two_runs_at_once_are_an_error(store, tmp_path):
    (tmp_path / "run").mkdir()
    lock = WriterLock(tmp_path / "run" / ".lock")
    lock.acquire()
    refused(CheckpointError, "another process", recipe(), store, tmp_path / "run")
    lock.release()


def test_a_checkpoint_of_another_architecture_is_an_error(whole, store, tmp_path):
    import shutil

    from headct.train.loop import TrainState
    from headct.train.optim import OptimConfig, make_optimizer
    from headct.train.runtime import Runtime
    from headct.train.saving import Checkpointer

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "bundle")
    net = torch.nn.Linear(3, 3)
    identity = latest_checkpoint(run / "checkpoints").identity
    state = TrainState(net, make_optimizer(net, OptimConfig()), step=99)
    cpu = Runtime(torch.device("cpu"), torch.float32)
    Checkpointer(run / "checkpoints", identity, 1, 1, cpu).save(state)
    refused(CheckpointError, "another architecture", recipe(), store, run)


def test_scans_of_a_step_that_is_not_finite_are_named(store, tmp_path, monkeypatch):
    real = module.JointObjective.losses

    def losses(self, views, fraction, **how):
        terms = real(self, views, fraction, **how)
        bad = float("nan") if fraction == 4 / 12 else 1.0
        return terms | {"loss": terms["loss"] * bad}

    monkeypatch.setattr(module.JointObjective, "losses", losses)
    run = tmp_path / "run"
    pretrain(recipe(), store, run, threads=1)
    (row,) = read_jsonl(run / "nonfinite.jsonl")
    assert row["step"] == 5
    assert len(row["scan_ids"]) == 4
    assert all(name.startswith("c-") for name in row["scan_ids"])
    metrics = {m["step"]: m for m in read_jsonl(run / "metrics.jsonl")}
    assert metrics[5]["loss"] is None
    assert not metrics[5]["applied"]
    assert (
        json.loads((run / "bundle" / "bundle.json").read_text())["provenance"]["skipped_steps"] == 1
    )


def test_no_identifier_of_the_machine_is_written(whole, store):
    text = "".join(
        p.read_text() for p in whole.rglob("*") if p.suffix in {".json", ".jsonl", ".toml", ".md"}
    )
    assert str(store) not in text
    assert str(whole) not in text


def test_panels_show_three_pictures_per_scan(whole):
    from matplotlib.image import imread

    picture = imread(whole / "panels" / "step-00000012.png")
    height, width = picture.shape[:2]
    assert (height % (4 * 3), width % (3 * 3)) == (0, 0)
    third = width // 3
    given, masked, guessed = (picture[:, i * third : (i + 1) * third, 0] for i in range(3))
    assert np.abs(given - masked).mean() > 0.01
    assert np.abs(masked - guessed).mean() > 0.001


@pytest.mark.parametrize("share", [0.5, 2.5])
def test_a_run_that_learned_nothing_says_so(whole, store, tmp_path, capsys, share):
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "bundle")
    *rows, last = read_jsonl(run / "metrics.jsonl")
    rows.append(last | {"brain_error_share": share})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pretrain(recipe(), store, run, threads=1).status == "finished"
    assert ("brain was guessed with 2.5 times" in capsys.readouterr().err) == (share > 1)


def test_panels_have_the_proportions_of_the_head(tmp_path):
    from matplotlib.image import imread

    write_panel(tmp_path / "p.png", np.zeros((3, 2, 4, 10, 6), np.float32), (5.0, 1.0, 2.0))
    assert imread(tmp_path / "p.png").shape[:2] == (2 * 10 * 3, 3 * 6 * 6)
