"""The verbs of adaptation through a command line, on a store of tiny scans."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from headct.cli import adapt, embed
from headct.errors import HeadctError

app = typer.Typer()
embed.register(app)
adapt.register(app)


def headct(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    answer = headct(*arguments)
    assert answer.exit_code == 0, answer.output
    return answer


@pytest.fixture(scope="session")
def features(world):
    done("embed", world / "store", "--bundle", world / "bundle", "--out", world / "f.parquet")
    return world / "f.parquet"


def given(world):
    return ("--store", world / "store", "--labels", world / "labels.csv")


def test_probe_and_fewshot_from_one_table(world, features, tmp_path):
    answer = done("probe", *given(world), "--features", features, "--out", tmp_path / "probe")
    assert "clot" in answer.stdout
    done(
        "fewshot",
        *given(world),
        "--features",
        features,
        "--shots",
        "2,4",
        "--out",
        tmp_path / "few",
    )
    for name, method in (("probe", "probe"), ("few", "fewshot")):
        predictions = pq.read_table(tmp_path / name / "predictions.parquet")
        assert set(predictions["method"].to_pylist()) == {method}
        run = json.loads((tmp_path / name / "run.json").read_text())
        assert run["verb"] == method
        assert str(tmp_path) not in json.dumps(run)


@pytest.mark.parametrize("verb", ["probe", "attentive", "fewshot"])
def test_features_know_their_scans_so_no_store_is_needed(world, features, tmp_path, verb):
    done(
        "embed", world / "store", "--bundle", world / "bundle", "--tokens", "--out", tmp_path / "k"
    )
    how = {
        "probe": ["probe", "--features", features],
        "attentive": ["probe", "--head", "attentive", "--set", "steps=2"],
        "fewshot": ["fewshot", "--features", features, "--shots", "2"],
    }[verb]
    how += ["--features", tmp_path / "k"] if verb == "attentive" else []
    done(*how, *given(world), "--out", tmp_path / "with")
    done(*how, "--labels", world / "labels.csv", "--out", tmp_path / "without")
    scores = [pq.read_table(tmp_path / n / "predictions.parquet") for n in ("with", "without")]
    assert scores[0].equals(scores[1])
    infos = [(tmp_path / n / "task.json").read_text() for n in ("with", "without")]
    assert infos[0] == infos[1]


def test_features_made_elsewhere_want_the_store(world, features, tmp_path):
    table = pq.read_table(features)
    mine = table.select(["scan_id", "cls"]).replace_schema_metadata(None)
    pq.write_table(mine, tmp_path / "mine.parquet")
    how = ("probe", "--features", tmp_path / "mine.parquet", "--out", tmp_path / "task")
    answer = headct(*how, "--labels", world / "labels.csv")
    assert "do not say of whom" in str(answer.exception)
    done(*how, *given(world))


def test_refused_scans_are_known_to_the_features(world, tmp_path):
    shutil.copytree(world / "store", tmp_path / "store")
    line = '{"status": "refused", "scan_id": null, "study": "c-refused"}\n'
    (tmp_path / "store" / "items.jsonl").write_text(line)
    how = ("--bundle", world / "bundle", "--out", tmp_path / "f.parquet")
    done("embed", tmp_path / "store", *how)
    (tmp_path / "l.csv").write_text((world / "labels.csv").read_text() + "c-refused,test,1,0\n")
    how = ("--features", tmp_path / "f.parquet", "--labels", tmp_path / "l.csv")
    answer = done("probe", *how, "--out", tmp_path / "t")
    assert "1 rows left out: ingest refused their scans" in answer.stderr


@pytest.mark.parametrize("source", ["histogram", "blocks", "random-init"])
def test_floors_are_probed_under_their_own_name(world, tmp_path, source):
    how = ["--floor", source]
    if source == "random-init":
        how = ["--bundle", world / "bundle", "--random-init", 3]
    done("embed", world / "store", *how, "--out", tmp_path / "f.parquet")
    out = tmp_path / "task"
    done("probe", *given(world), "--features", tmp_path / "f.parquet", "--out", out)
    assert json.loads((out / "task.json").read_text())["method"] == f"probe-{source}"


@pytest.mark.parametrize("verb", ["probe", "knn", "fewshot", "finetune"])
def test_a_method_has_the_name_that_a_person_gives_it(world, features, tmp_path, verb):
    how = {
        "probe": ("--features", features),
        "knn": ("--head", "knn", "--features", features),
        "fewshot": ("--features", features, "--shots", "2"),
        "finetune": ("--from-scratch", "cnn3d", "--set", "steps=1", "--set", "batch=2"),
    }[verb]
    called = "probe" if verb == "knn" else verb
    done(called, *given(world), *how, "--name", "arm-1", "--out", tmp_path / "t")
    assert json.loads((tmp_path / "t" / "task.json").read_text())["method"] == "arm-1"
    predictions = pq.read_table(tmp_path / "t" / "predictions.parquet")
    assert set(predictions["method"].to_pylist()) == {"arm-1"}


def test_finetune_with_settings(world, tmp_path):
    few = ["--set", "steps=2", "--set", "batch=2", "--set", "threads=1", "--findings", "clot"]
    done("finetune", *given(world), "--bundle", world / "bundle", *few, "--out", tmp_path / "t")
    info = json.loads((tmp_path / "t" / "task.json").read_text())
    assert info["findings"] == ["clot"]
    assert "steps = 2" in (tmp_path / "t" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("embed", "S", "--out", "f"), "give one of --bundle, --encoder"),
        (("embed", "S", "--out", "f", "--floor", "blocks", "--random-init", 1), "no weights"),
        (("finetune", "--store", "S", "--labels", "L", "--out", "t"), "give --bundle or"),
        (
            (
                "finetune",
                "--bundle",
                "S",
                "--store",
                "S",
                "--labels",
                "L",
                "--out",
                "t",
                "--set",
                "nothing=1",
            ),
            "recipe bundle has 1 fault",
        ),
        (("probe", "--features", "F", *("--set", "n_fold=3")), "did you mean n_folds"),
        (
            ("fewshot", "--features", "F", "--shots", "5,x"),
            "--shots wants whole numbers, not '5,x'",
        ),
        (("probe", "--features", "F", "--findings", "edh"), "no column for edh"),
        (("probe", "--features", "F", "--n-labels", 500), "has 20"),
        (("probe", "--features", "F", "--name", "My Probe"), "--name wants"),
        (("embed", "S", "--encoder", "merlin", "--out", "f"), "merlin wants its weights"),
        (("embed", "S", "--encoder", "ct-fm", "--weights", "w", "--out", "f"), "no such weight"),
        (("embed", "S", "--floor", "blocks", "--weights", "w", "--out", "f"), "with --encoder"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_written(world, features, tmp_path, arguments, fault):
    known = {"S": world / "store", "L": world / "labels.csv", "F": features}
    out = tmp_path / "out"
    arguments = [known.get(a, out if a in ("f", "t") else a) for a in arguments]
    if arguments[0] in ("probe", "fewshot"):
        arguments += [*given(world), "--out", out]
    answer = headct(*arguments)
    assert isinstance(answer.exception, HeadctError)
    assert fault in str(answer.exception)
    assert not list(tmp_path.iterdir())


def test_labels_of_refused_scans_are_counted_on_stderr(world, features, tmp_path):
    table = (world / "labels.csv").read_text()
    (world / "store" / "items.jsonl").write_text(
        '{"status": "refused", "scan_id": null, "study": "c-refused"}\n'
    )
    (tmp_path / "l.csv").write_text(table + "c-refused,test,1,0\n")
    given = ("--store", world / "store", "--labels", tmp_path / "l.csv")
    answer = done("probe", *given, "--features", features, "--out", tmp_path / "t")
    assert "1 rows left out: ingest refused their scans" in answer.stderr


@pytest.mark.parametrize("verb", ["embed", "tokens", "finetune"])
def test_a_scan_that_cannot_be_read_is_named_and_never_scored(world, tmp_path, verb):
    shutil.copytree(world / "store", tmp_path / "store")
    shard = max((tmp_path / "store").glob("**/c/*/*/*/*"), key=lambda path: path.name)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = {
        "embed": ["embed", store],
        "tokens": ["embed", store, "--tokens"],
        "finetune": ["finetune", "--store", store, "--labels", world / "labels.csv"],
    }
    how = ["--set", "steps=2", "--set", "precision=fp32"] if verb == "finetune" else []
    answer = headct(*arguments[verb], "--bundle", world / "bundle", *how, "--out", out)
    assert isinstance(answer.exception, HeadctError)
    assert "c-" in str(answer.exception), "which scan"
    assert not (out / "predictions.parquet").exists()
    assert not out.is_file()
