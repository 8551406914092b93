"""A small matrix of real tasks: made once, gone on with, made again where something changed."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from headct.adapt.features import read_features, write_features
from headct.adapt.task import PREDICTIONS
from headct.benchmark import jobs as benchmark_jobs
from headct.benchmark import matrix as benchmark_matrix
from headct.benchmark.encoders import Encoding, prepare
from headct.benchmark.matrix import run_matrix
from headct.benchmark.results import write_results
from headct.benchmark.spec import Verb, load_spec
from headct.cli.app import app
from headct.engine.choice import Engine, SlurmOptions
from headct.errors import HeadctError, LabelError, UsageError
from headct.evaluate.carry_over import carry_over
from headct.evaluate.report import render
from headct.evaluate.results import read_results
from headct.model.architecture import EncoderConfig
from headct.model.bundle import save_bundle
from headct.model.encoder import ViT3D
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

HERE = Engine(jobs=0)
EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmark.toml"
GRID = Preprocessing(shape_zyx=(16, 16, 16), spacing_mm_zyx=(10.0, 10.0, 10.0))
ENCODER = EncoderConfig(
    width=24,
    depth=2,
    heads=2,
    mlp_ratio=2,
    patch_voxels_zyx=(4, 4, 4),
    spacing_mm_zyx=GRID.spacing_mm_zyx,
    n_tokens=40,
    n_registers=1,
)
SPEC = """
store = "store"
labels = "labels.csv"
n_labels = [24, 0]
seeds = [0, 1]
n_boot = 20
min_positives = 3

[encoders.small]
bundle = "small"
n_pretrained = 100

[encoders.large]
bundle = "large"
n_pretrained = 1000

[encoders.random]
bundle = "large"
random_init = 0

[encoders.histogram]
floor = "histogram"

[methods.probe]
verb = "probe"
set = ["strengths_c=[1e-2]"]

[methods.neighbours]
verb = "knn"

[methods.attentive]
verb = "attentive"
set = ["steps=20", "batch=8", "width=8"]

[methods.few]
verb = "fewshot"
set = ["shots=[2, 4]"]

[methods.tuned]
verb = "finetune"
set = ["steps=2", "batch=4", "precision=fp32"]

[methods.scratch]
verb = "scratch-vit"
set = ["steps=2", "batch=4", "precision=fp32"]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    rows = []
    with StoreWriter(folder / "store", GRID, shard_scans=64) as writer:
        for i in range(96):
            hu = rng.normal(30, 4, GRID.shape_zyx)
            truth = rng.random(3) < 0.5
            for at, present in zip((2, 6, 10), truth, strict=True):
                hu[at : at + 4, at : at + 4, at : at + 4] += 40 * present
            row = {
                "scan_id": f"c-{i}",
                "patient_id": f"p-{i}",
                "study_id": f"s-{i}",
                "series_id": f"e-{i}",
                "status": "accepted",
                "affine_zyx": np.eye(4),
                "sex": "FM"[i % 2],
            }
            writer.append(hu.astype(np.int16), row)
            split = ("train", "train", "tune", "test", "test")[i % 5]
            site = "b" if i % 5 == 4 else "a"
            rows.append([f"c-{i}", site, split, *truth.astype(int)])
    with (folder / "labels.csv").open("w", newline="") as handle:
        header = ["scan_id", "site", "split", "sdh", "iph", "edh"]
        csv.writer(handle).writerows([header, *rows])
    for seed, name in enumerate(("small", "large")):
        torch.manual_seed(seed)
        save_bundle(folder / name, ViT3D(ENCODER), GRID)
    (folder / "spec.toml").write_text(SPEC)
    return folder


@pytest.fixture(scope="module")
def bench(world):
    out = world / "out"
    spec = load_spec(world / "spec.toml")
    assert run_matrix(spec, out, HERE) == []
    write_results(spec, out, [])
    return out


def test_the_matrix_is_every_method_on_every_encoder_that_it_fits(world):
    names = {job.name for job in load_spec(world / "spec.toml").jobs()}
    probes = {
        f"{e}.probe.{n}.{s}"
        for e in ("small", "large", "random", "histogram")
        for n in ("24", "all")
        for s in (0, 1)
    }
    assert probes <= names
    assert {name for name in names if ".tuned." in name} == {
        f"{e}.tuned.{n}.{s}" for e in ("small", "large") for n in ("24", "all") for s in (0, 1)
    }
    assert {name for name in names if name.startswith("scratch")} == {
        f"scratch.{n}.{s}" for n in ("24", "all") for s in (0, 1)
    }
    assert {n for n in names if ".few." in n} == {
        f"{e}.few.all.0" for e in ("small", "large", "random", "histogram")
    }


def test_one_tidy_table_holds_every_number(world, bench):
    rows = pq.read_table(bench / "benchmark.parquet").to_pylist()
    full = [r for r in rows if (r["finding"], r["metric"], r["seed"]) == ("macro", "auroc", None)]
    series = {(r["encoder"], r["method"], r["k"], r["site"]) for r in full}
    assert ("large", "tuned", 0, "a") in series
    assert (None, "scratch", 0, "b") in series
    assert ("histogram", "few", 4, "b") in series
    seeds = [
        r["value"]
        for r in rows
        if (r["encoder"], r["method"], r["site"], r["finding"], r["metric"])
        == ("small", "probe", "a", "macro", "auroc")
        and r["seed"] is not None
        and r["n_train"] == 24
    ]
    assert len(seeds) == 2
    (mean,) = [
        r
        for r in full
        if (r["encoder"], r["method"], r["site"], r["n_train"]) == ("small", "probe", "a", 24)
    ]
    assert mean["value"] == pytest.approx(np.mean(seeds))
    assert mean["lo"] <= mean["value"] <= mean["hi"]


def test_the_report_has_radar_and_scaling_figures(bench):
    page = render(read_results(bench))
    assert page.count("\n") == render(read_results(bench / "eval")).count("\n")
    for title in ("a radar per site", "Macro AUROC by labels", "Macro AUROC by scale"):
        assert f'aria-label="{title}' in page or title in page


def test_a_finished_job_is_left_alone_and_a_changed_one_is_made_again(world, bench):
    spec = load_spec(world / "spec.toml")
    stamp = {p: p.stat().st_mtime_ns for p in (bench / "tasks").glob("*/task.json")}
    assert run_matrix(spec, bench, HERE) == []
    assert stamp == {p: p.stat().st_mtime_ns for p in (bench / "tasks").glob("*/task.json")}
    shutil.rmtree(bench / "tasks" / "small.probe.all.0")
    changed = spec.model_copy(
        update={
            "methods": spec.methods
            | {"few": spec.methods["few"].model_copy(update={"set": ("shots=[2]",)})}
        }
    )
    assert run_matrix(changed, bench, HERE) == []
    again = {p.parent.name for p in stamp if p.stat().st_mtime_ns != stamp[p]}
    assert again == {"small.probe.all.0", *(f"{e}.few.all.0" for e in spec.encoders)}
    assert run_matrix(spec, bench, HERE) == []


def test_features_of_another_bundle_are_not_used(world, tmp_path):
    small = SPEC[: SPEC.index("[encoders.large]")] + '[methods.probe]\nverb = "probe"\n'
    for name in ("store", "labels.csv", "small", "large"):
        (tmp_path / name).symlink_to(world / name)
    (tmp_path / "spec.toml").write_text(small)
    run_matrix(load_spec(tmp_path / "spec.toml"), tmp_path / "out", HERE)
    first = read_features(tmp_path / "out" / "features" / "small.parquet").bundle_hash
    (tmp_path / "spec.toml").write_text(small.replace('bundle = "small"', 'bundle = "large"'))
    run_matrix(load_spec(tmp_path / "spec.toml"), tmp_path / "out", HERE)
    assert read_features(tmp_path / "out" / "features" / "small.parquet").bundle_hash != first


def test_a_job_that_cannot_be_done_is_named_and_the_others_count(world, bench, tmp_path):
    table = read_features(bench / "features" / "histogram.parquet")
    write_features(tmp_path / "mine.parquet", table)
    text = SPEC[: SPEC.index("[encoders.small]")] + (
        f'[encoders.mine]\nfeatures = "{tmp_path}/mine.parquet"\n'
        '[methods.probe]\nverb = "probe"\n'
        '[methods.few]\nverb = "fewshot"\nset = ["shots=[500]"]\n'
    )
    spec = world / "partly.toml"
    spec.write_text(text)
    result = CliRunner().invoke(
        app, ["benchmark", str(spec), "--out", str(tmp_path / "b"), "--jobs", "2"]
    )
    assert result.exit_code == 1
    assert "mine.few.all.0 [labels]" in result.output
    assert "mine / probe" in result.output
    failed = json.loads((tmp_path / "b" / "eval" / "benchmark.json").read_text())["failed"]
    assert [one["job"] for one in failed] == ["mine.few.all.0"]
    dry = CliRunner().invoke(
        app, ["benchmark", str(spec), "--out", str(tmp_path / "c"), "--dry-run"]
    )
    assert len(dry.output.split()) == 5
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('[encoders.x]\nfloor = "histogram"\nbundle = "b"\n', "one of bundle, encoder, floor and"),
        ('[encoders.x]\nfloor = "histogram"\nrandom_init = 0\n', "random_init goes with a bundle"),
        ('[encoders."Bad Name"]\nfloor = "histogram"\n', "Bad Name"),
        ("[methods.y]\nverb = 'magic'\n", "methods.y.verb"),
        ("", "no method fits"),
    ],
)
def test_a_faulty_spec_is_said(tmp_path, change, message):
    base = 'store = "store"\nlabels = "labels.csv"\n[methods.tuned]\nverb = "finetune"\n'
    (tmp_path / "spec.toml").write_text(base + change)
    with pytest.raises(UsageError, match=message):
        load_spec(tmp_path / "spec.toml")


SITES = """
store = "store"
labels = "both.csv"
train_sites = ["a", "b"]
n_boot = 20
min_positives = 3

[encoders.blocks]
floor = "blocks"

[methods.probe]
verb = "probe"
set = ["strengths_c=[1e-2]"]
"""


@pytest.fixture(scope="module")
def both(world):
    """Labels with train, tune and test at two sites."""
    rows = list(csv.reader((world / "labels.csv").read_text().splitlines()))
    for i, row in enumerate(rows[1:]):
        row[1:3] = ["ab"[i % 2], ("train", "train", "tune", "test", "test")[(i // 2) % 5]]
    with (world / "both.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    (world / "sites.toml").write_text(SITES)
    return world


def test_each_site_trains_in_turn_and_all_sites_test(both, tmp_path):
    spec = load_spec(both / "sites.toml")
    assert run_matrix(spec, tmp_path, HERE) == []
    rows = write_results(spec, tmp_path, [])
    macro = [r for r in rows if (r["finding"], r["metric"], r["seed"]) == ("macro", "auroc", None)]
    assert {(r["trained_at"], r["site"], r["internal"]) for r in macro} == {
        ("a", "a", True),
        ("a", "b", False),
        ("b", "a", False),
        ("b", "b", True),
    }
    for site in "ab":
        task = tmp_path / "tasks" / f"blocks.probe.all.0@{site}"
        shown = pq.read_table(task / "predictions.parquet").to_pylist()
        assert {r["site"] for r in shown if r["split"] == "tune"} == {site}
        assert {r["site"] for r in shown if r["split"] == "test"} == {"a", "b"}
        assert json.loads((task / "task.json").read_text())["n_train"]["sdh"] == 20


def test_seeds_with_other_labels_unknown_are_one_method(both, tmp_path):
    rows = list(csv.reader((both / "both.csv").read_text().splitlines()))
    rng = np.random.default_rng(3)
    for row in rows[1:]:
        row[3:] = ["" if rng.random() < 0.3 else value for value in row[3:]]
    with (both / "holes.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    text = SITES.replace("both.csv", "holes.csv").replace('train_sites = ["a", "b"]', "")
    (both / "holes.toml").write_text("n_labels = [24]\nseeds = [0, 1, 2]" + text)
    spec = load_spec(both / "holes.toml")
    assert run_matrix(spec, tmp_path, HERE) == []
    known = [
        max(json.loads(path.read_text())["n_train"].values())
        for path in (tmp_path / "tasks").glob("*/task.json")
    ]
    assert len(set(known)) > 1, "the draws should differ in what is known"
    means = [row for row in write_results(spec, tmp_path, []) if row["seed"] is None]
    assert {row["n_train"] for row in means} == {24}
    assert {row["n_seeds"] for row in means} == {3}


def test_splits_that_are_not_given_are_the_same_for_all_seeds(both, tmp_path):
    rows = list(csv.reader((both / "labels.csv").read_text().splitlines()))
    with (both / "unsplit.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([row[:2] + row[3:] for row in rows])
    text = SITES.replace("both.csv", "unsplit.csv").replace('train_sites = ["a", "b"]', "")
    (both / "unsplit.toml").write_text("n_labels = [24]\nseeds = [1, 2]" + text)
    spec = load_spec(both / "unsplit.toml")
    assert run_matrix(spec, tmp_path, HERE) == []
    tables = [pq.read_table(p) for p in sorted((tmp_path / "tasks").glob(f"*/{PREDICTIONS}"))]
    tested = [
        set(map(tuple, map(dict.values, t.select(["scan_id", "split"]).to_pylist())))
        for t in tables
    ]
    assert tested[0] == tested[1]
    assert tables[0]["y_score"] != tables[1]["y_score"], "train labels are drawn by seed"
    assert {r["n_seeds"] for r in write_results(spec, tmp_path, []) if r["seed"] is None} == {2}


def _identities(spec):
    store = open_store(spec.store)
    return {
        job.name: benchmark_jobs.identity_of(
            spec, store, benchmark_jobs.labels_of(spec, store), job
        )
        for job in spec.jobs()
    }


@pytest.mark.parametrize("change", ["recipe", "architecture", "site", "patient", "voxels"])
def test_whatever_a_task_is_made_from_makes_it_anew(world, tmp_path, change):
    shutil.copytree(world / "store", tmp_path / "store")
    shutil.copytree(world / "small", tmp_path / "small")
    shutil.copy(world / "labels.csv", tmp_path)
    (tmp_path / "recipe.toml").write_text("steps = 2\n")
    text = SPEC[: SPEC.index("[encoders.large]")] + (
        '[methods.probe]\nverb = "probe"\n'
        '[methods.scratch]\nverb = "scratch-vit"\nrecipe = "recipe.toml"\n'
    )
    (tmp_path / "spec.toml").write_text(text)
    spec = load_spec(tmp_path / "spec.toml")
    before = _identities(spec)
    assert _identities(spec) == before
    if change == "recipe":
        (tmp_path / "recipe.toml").write_text("steps = 3\n")
    elif change == "architecture":
        shutil.rmtree(tmp_path / "small")
        save_bundle(tmp_path / "small", ViT3D(ENCODER.model_copy(update={"depth": 1})), GRID)
    elif change == "voxels":
        replace_voxels(tmp_path / "store")
    else:
        rows = list(csv.reader((tmp_path / "labels.csv").read_text().splitlines()))
        if change == "site":
            rows[1][1] = "c"
        else:  # two train scans turn out to be of one patient
            rows = [[*row, "x" if n in (1, 2) else ""] for n, row in enumerate(rows)]
            rows[0][-1] = "patient_id"
        with (tmp_path / "labels.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)
    after = _identities(spec)
    changed = {name for name in before if before[name] != after[name]}
    scratch = {name for name in before if name.startswith("scratch")}
    assert changed == (scratch if change == "recipe" else set(before))


def replace_voxels(store):
    """The same scans with other voxels, as ingested again."""
    manifest = open_store(store).manifest
    shutil.rmtree(store)
    with StoreWriter(store, GRID, shard_scans=64) as writer:
        for n, row in enumerate(manifest.to_pylist()):
            writer.append(np.full(GRID.shape_zyx, n, np.int16), row)


def test_features_of_other_voxels_are_not_used(world, tmp_path):
    shutil.copytree(world / "store", tmp_path / "store")
    for name in ("labels.csv", "small"):
        (tmp_path / name).symlink_to(world / name)
    text = SPEC[: SPEC.index("[encoders.small]")] + (
        '[encoders.histogram]\nfloor = "histogram"\n[methods.probe]\nverb = "probe"\n'
    )
    (tmp_path / "spec.toml").write_text(text)
    encoding = Encoding(
        load_spec(tmp_path / "spec.toml"), tmp_path / "out", "histogram", frozenset({"probe"})
    )
    prepare(encoding)
    path = tmp_path / "out" / "features" / "histogram.parquet"
    (first,) = read_features(path).vectors.values()
    replace_voxels(tmp_path / "store")
    prepare(encoding)
    (second,) = read_features(path).vectors.values()
    assert not np.array_equal(first, second)


def test_the_report_shows_who_was_trained_where(both, tmp_path):
    spec = load_spec(both / "sites.toml")
    run_matrix(spec, tmp_path, HERE)
    rows = write_results(spec, tmp_path, [])
    results = read_results(tmp_path / "eval" / "b")
    found = {one.trained_at: one for one in carry_over(results)}
    (value,) = [
        r["value"]
        for r in rows
        if (r["trained_at"], r["site"], r["finding"], r["metric"]) == ("a", "b", "macro", "auroc")
        and r["seed"] is None
    ]
    assert found["a"].outside == value
    assert found["a"].at["a"][1]
    assert not found["a"].at["b"][1]
    with pytest.raises(UsageError, match="each training site") as said:
        read_results(tmp_path)
    assert f"{tmp_path.name}/eval/a, {tmp_path.name}/eval/b" in said.value.remedy
    page = render(results)
    assert "OOD − ID" in page
    assert page.count(" OOD</small>") == 2


def test_a_site_without_train_scans_is_said_before_anything_is_made(both, tmp_path):
    spec = load_spec(both / "sites.toml").model_copy(update={"train_sites": ("a", "c")})
    with pytest.raises(LabelError, match="'c'"):
        run_matrix(spec, tmp_path, HERE)
    assert not list(tmp_path.iterdir())


def test_a_job_with_a_fault_of_ours_stops_no_other(both, tmp_path, monkeypatch):
    def faulty(table, labels, *_, **__):
        raise ZeroDivisionError("of patient X")

    monkeypatch.setattr(benchmark_jobs, "run_probe", faulty)
    text = SITES + '[methods.few]\nverb = "fewshot"\nset = ["shots=[2]"]\n'
    (both / "mixed.toml").write_text(text.replace('train_sites = ["a", "b"]', ""))
    spec = load_spec(both / "mixed.toml")
    (failed,) = run_matrix(spec, tmp_path, HERE)
    assert (failed.job, failed.code) == ("blocks.probe.all.0", "unexpected")
    assert "patient X" not in (tmp_path / "jobs" / f"{failed.job}.json").read_text()
    assert {row["method"] for row in write_results(spec, tmp_path, [failed])} == {"few"}


def test_a_benchmark_in_which_nothing_could_be_made_says_so(both, tmp_path):
    spec = load_spec(both / "sites.toml")
    with pytest.raises(HeadctError, match="none of 1 tasks"):
        write_results(spec, tmp_path, [benchmark_jobs.Failed("x", "labels", "too few")])


def test_a_folder_that_is_no_benchmark_is_refused_and_stays(both, tmp_path):
    spec = load_spec(both / "sites.toml")
    (tmp_path / "run.json").write_text('{"verb": "pretrain"}')
    with pytest.raises(UsageError, match="is no benchmark"):
        run_matrix(spec, tmp_path, HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    with pytest.raises(UsageError, match="is no benchmark"):
        run_matrix(spec, tmp_path / "run.json", HERE)


def test_a_benchmark_that_was_stopped_early_goes_on(both, tmp_path, monkeypatch):
    spec = load_spec(both / "sites.toml")
    with monkeypatch.context() as patch:
        patch.setattr(
            benchmark_matrix, "prepare", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run_matrix(spec, tmp_path / "bench", HERE)
    assert run_matrix(spec, tmp_path / "bench", HERE) == []


@pytest.mark.parametrize("kind", ["slurm-local", "ray"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.xdist_group("ray")
def test_an_engine_makes_the_tasks_that_this_process_makes(both, tmp_path, kind):
    pytest.importorskip("submitit" if kind == "slurm-local" else "ray", reason="extra `cluster`")
    spec = load_spec(both / "sites.toml")
    assert run_matrix(spec, tmp_path / "here", HERE) == []
    engine = Engine(kind, 2, slurm=SlurmOptions(minutes=2, chunk=1))
    with ray_cluster() if kind == "ray" else nullcontext() as address:
        away = replace(engine, ray_address=address)
        assert run_matrix(spec, tmp_path / "away", away) == []
    for site in "ab":
        tables = [
            pq.read_table(tmp_path / where / "tasks" / f"blocks.probe.all.0@{site}" / PREDICTIONS)
            for where in ("here", "away")
        ]
        assert tables[0].equals(tables[1])
    assert not [path for path in (tmp_path / "away").iterdir() if path.name.startswith(".")]


@contextmanager
def ray_cluster():
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    yield nodes.address
    nodes.shutdown()


OTHERS = """
store = "two"
labels = "labels.csv"

[encoders.ctfm]
encoder = "ct-fm"
random_init = 0

[encoders.merlin]
encoder = "merlin"
random_init = 0

[methods.probe]
verb = "probe"
"""


@pytest.mark.parametrize(
    ("name", "width"), [("ctfm", 512), pytest.param("merlin", 2048, marks=pytest.mark.slow)]
)
def test_encoders_of_others_are_embedded_on_the_way(tmp_path, name, width):
    pytest.importorskip("monai", reason="the extra `baselines` is not installed")
    with StoreWriter(tmp_path / "two", GRID, shard_scans=2) as writer:
        for i in range(2):
            ids = {kind: f"{kind}-{i}" for kind in ("scan_id", "patient_id", "study_id")}
            row = ids | {"series_id": f"e-{i}", "status": "accepted", "affine_zyx": np.eye(4)}
            writer.append(np.full(GRID.shape_zyx, 30 + 20 * i, np.int16), row)
    (tmp_path / "spec.toml").write_text(OTHERS)
    spec = load_spec(tmp_path / "spec.toml")
    prepare(Encoding(spec, tmp_path / "out", name, frozenset({"probe"})))
    table = read_features(tmp_path / "out" / "features" / f"{name}.parquet")
    assert table.source == f"random-{spec.encoders[name].encoder}"
    assert table.vectors["pooled"].shape == (2, width)
    assert np.abs(np.diff(table.vectors["pooled"], axis=0)).max() > 0


def test_the_example_compares_every_baseline():
    spec = load_spec(EXAMPLE)
    assert {e.floor for e in spec.encoders.values()} >= {"histogram", "blocks"}
    assert {e.encoder for e in spec.encoders.values()} >= {"ct-fm", "merlin"}
    assert any(e.random_init is not None and e.bundle for e in spec.encoders.values())
    assert any(e.features for e in spec.encoders.values())
    assert {m.verb for m in spec.methods.values()} == set(get_args(Verb))
