"""The whole evaluation on made-up predictions, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from headct.adapt.predictions import write_predictions
from headct.adapt.task import PREDICTIONS, load_task, save_info
from headct.errors import CheckpointError, HeadctError, LabelError, MismatchError, UsageError
from headct.evaluate.collect import RunKey, collect
from headct.evaluate.evaluation import EvaluationConfig, evaluate
from headct.evaluate.headline import answers, opening
from headct.evaluate.report import operating
from headct.evaluate.results import read_results

QUICK = EvaluationConfig(n_boot=60, min_positives=3)


def table(out: Path, name: str) -> list[dict]:
    return pq.read_table(out / "tables" / f"{name}.parquet").to_pylist()


def one(rows: list[dict], **what: object) -> dict:
    found = [row for row in rows if all(row[name] == value for name, value in what.items())]
    assert len(found) == 1, (len(found), what)
    return found[0]


@pytest.fixture
def evaluated(make_task, cohort, tmp_path):
    tasks = [
        make_task(cohort, "probe-histogram", 0.4),
        make_task(cohort, "scratch-vit", 0.5),
        make_task(cohort, "finetune", 2.0, seeds=(0, 1)),
        make_task(cohort, "fewshot", 1.5, seeds=(0, 1, 2, 3, 4), shots=(5, 10)),
    ]
    out = tmp_path / "eval"
    evaluate(tasks, out, QUICK)
    return tasks, out


def test_point_values_are_those_of_sklearn_on_the_rows_of_the_task(evaluated):
    tasks, out = evaluated
    rows = table(out, "metrics")
    predictions = pq.read_table(tasks[1] / "predictions.parquet").filter(
        (pc.field("split") == "test")
        & (pc.field("site") == "hospital-b")
        & (pc.field("finding") == "iph")
    )
    y, p = predictions["y_true"].to_numpy(), predictions["y_score"].to_numpy()
    shared = {"method": "scratch-vit", "site": "hospital-b", "finding": "iph"}
    assert one(rows, **shared, metric="auroc")["value"] == pytest.approx(roc_auc_score(y, p))
    assert one(rows, **shared, metric="auprc")["value"] == pytest.approx(
        average_precision_score(y, p)
    )
    sensitivity = one(rows, **shared, metric="sensitivity")
    assert sensitivity["value"] == pytest.approx((p[y == 1] >= 0.5).mean())
    assert (sensitivity["n"], sensitivity["n_pos"]) == (len(y), y.sum())
    assert sensitivity["n_patients"] == len(set(predictions["patient_id"].to_pylist()))


def test_a_method_with_several_seeds_is_their_mean_and_macro_is_the_mean_of_findings(evaluated):
    tasks, out = evaluated
    rows = table(out, "metrics")
    shared = {"method": "finetune", "site": "hospital-a", "metric": "auroc"}
    values = [one(rows, **shared, finding=name)["value"] for name in ("sdh", "iph", "fracture")]
    assert one(rows, **shared, finding="macro")["value"] == pytest.approx(np.mean(values))
    assert one(rows, **shared, finding="sdh")["n_seeds"] == 2
    predictions = pq.read_table(tasks[2] / "predictions.parquet").to_pylist()
    of_seed = [
        [(r["y_true"], r["y_score"]) for r in predictions if _is(r, seed)] for seed in (0, 1)
    ]
    areas = [roc_auc_score(*np.array(pairs).T) for pairs in of_seed]
    assert one(rows, **shared, finding="sdh")["value"] == pytest.approx(np.mean(areas))


def _is(row: dict, seed: int) -> bool:
    where = ("test", "hospital-a", "sdh")
    return (row["split"], row["site"], row["finding"]) == where and row["seed"] == seed


def test_intervals_hold_the_estimate_and_internal_is_where_the_tune_patients_are(evaluated):
    _, out = evaluated
    rows = table(out, "metrics")
    for row in rows:
        if row["metric"] in ("auroc", "auprc", "brier_error", "ece_error", "sensitivity"):
            assert row["lo"] <= row["value"] <= row["hi"], row
        assert row["internal"] == (row["site"] == "hospital-a")


def test_a_real_difference_is_found_and_survives_correction(evaluated):
    _, out = evaluated
    rows = table(out, "comparisons")
    pair = {"method_a": "finetune", "method_b": "scratch-vit", "site": "hospital-a"}
    macro = one(rows, **pair, finding="macro", metric="auroc")
    assert macro["lo"] > 0.1
    assert macro["p_holm"] < 0.2
    sdh = one(rows, **pair, finding="sdh", metric="auroc")
    assert sdh["p"] <= sdh["p_holm"] < 0.01
    assert "DeLong" in sdh["test"]
    assert {(r["method_a"], r["method_b"]) for r in rows} == {
        ("finetune", "probe-histogram"),
        ("finetune", "scratch-vit"),
    }


def test_few_shot_has_mean_and_spread_over_draws(evaluated):
    _, out = evaluated
    rows = table(out, "label_efficiency")
    row = one(rows, method="fewshot", k=10, site="hospital-a", finding="macro", metric="auroc")
    assert row["n_draws"] == 5
    assert row["lowest"] < row["mean"] < row["highest"]
    assert row["sd"] > 0
    assert "fewshot" not in {row["method"] for row in table(out, "metrics")}


def test_the_same_seed_gives_the_same_tables(make_task, cohort, tmp_path, evaluated):
    tasks, out = evaluated
    evaluate(tasks, tmp_path / "again", QUICK)
    for name in ("metrics", "comparisons"):
        again = pq.read_table(tmp_path / "again" / "tables" / f"{name}.parquet")
        assert again.equals(pq.read_table(out / "tables" / f"{name}.parquet"))


def test_too_few_positives_is_said_and_kept_out_of_the_macro_mean(make_task, cohort, tmp_path):
    rare = cohort.truth[:, 2] == 1
    cohort.truth[np.flatnonzero(rare)[5:], 2] = 0
    task = make_task(cohort, "finetune", 1.0)
    evaluate([task], tmp_path / "eval", EvaluationConfig(n_boot=0, min_positives=10))
    summary = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert summary["sites"][0]["too_few"] == ["fracture"]
    assert summary["sites"][0]["in_macro"] == ["sdh", "iph"]
    rows = table(tmp_path / "eval", "metrics")
    shared = {"site": "hospital-a", "metric": "auroc"}
    two = [one(rows, **shared, finding=name)["value"] for name in ("sdh", "iph")]
    assert one(rows, **shared, finding="macro")["value"] == pytest.approx(np.mean(two))


def test_a_site_without_enough_positives_of_anything_has_no_macro_score_and_says_so(
    make_task, cohort, tmp_path
):
    task = make_task(cohort, "finetune", 1.0)
    evaluate([task], tmp_path / "eval", EvaluationConfig(n_boot=20, min_positives=10_000))
    rows = table(tmp_path / "eval", "metrics")
    assert {row["enough"] for row in rows} == {False}
    results = read_results(tmp_path / "eval")
    assert "no score, for want of positives, at hospital-a" in opening(results, "finetune")
    assert answers(results, "finetune") is not None


def test_a_finding_that_one_method_lacks_leaves_the_macro_mean_of_all(make_task, cohort, tmp_path):
    lacks = make_task(cohort, "probe", 1.0, change=lambda t: t.filter(pc.field("finding") != "sdh"))
    evaluate([lacks, make_task(cohort, "finetune")], tmp_path / "eval", QUICK)
    summary = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert summary["sites"][0]["in_macro"] == ["iph", "fracture"]


def test_one_method_with_two_numbers_of_labels_is_one_arm_and_one_curve(
    make_task, cohort, tmp_path
):
    tasks = [
        make_task(cohort, "finetune", 2.0),
        make_task(cohort, "finetune", 1.0, n_train=100, name="finetune-100"),
    ]
    evaluate(tasks, tmp_path / "eval", QUICK)
    assert {row["n_train"] for row in table(tmp_path / "eval", "metrics")} == {300}
    assert {row["n_train"] for row in table(tmp_path / "eval", "label_efficiency")} == {100, 300}


def told(task: Path, **what: object) -> Path:
    """A task whose task.json says something else."""
    path = task / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | what))
    return task


@pytest.fixture
def two_numbers(make_task, cohort, tmp_path):
    """A method with few labels, named first, and with all of them by two seeds."""
    tasks = [
        told(
            make_task(
                cohort, "probe", 1.0, seeds=(seed,), n_train=n_train, name=f"{n_train}-{seed}"
            ),
            seed=seed,
            temperatures={"sdh": temperature},
            thresholds={"sdh": temperature / 10, "iph": 0.5, "fracture": 0.5},
            rule_out_thresholds={"sdh": temperature / 20},
        )
        for n_train, seed, temperature in ((100, 0, 4.0), (300, 1, 3.0), (300, 0, 2.0))
    ]
    chances = {"100-0": 0.1, "300-0": 0.2, "300-1": 0.4}
    for task in tasks:
        rows = [
            {
                "scan_id": f"c-{i}",
                "patient_id": f"p-{i}",
                "site": "hospital-a",
                "finding": "sdh",
                "average_precision": 2 * chances[task.name] + 0.1 * (i % 2),
                "chance": chances[task.name],
            }
            for i in range(40)
        ]
        pq.write_table(pa.Table.from_pylist(rows), task / "retrieval.parquet")
    evaluate(tasks, tmp_path / "eval", QUICK)
    return tmp_path / "eval"


def test_calibration_takes_the_temperature_of_the_run_whose_scores_it_takes(two_numbers):
    rows = [row for row in table(two_numbers, "calibration") if row["finding"] == "sdh"]
    assert [row["temperature"] for row in rows] == [2.0, 2.0]


def test_each_task_is_summed_up_with_its_own_number_of_labels(two_numbers):
    methods = json.loads((two_numbers / "evaluation.json").read_text())["methods"]
    found = [(about["n_train"], about["n_positive"]["sdh"]) for about in methods]
    assert found == [(100, 25), (300, 75), (300, 75)]


def test_a_report_shows_the_thresholds_that_its_metrics_rest_on(two_numbers):
    (row, *_) = operating(read_results(two_numbers), "probe")
    assert (row["finding"], row["threshold"], row["rule_out"]) == ("sdh", 0.2, 0.1)


def test_retrieval_is_of_the_most_labels_and_counts_a_case_of_two_seeds_once(two_numbers):
    (row,) = table(two_numbers, "retrieval")
    assert (row["n"], row["n_train"]) == (40, 300)
    assert row["chance"] == pytest.approx(0.3)
    assert row["map"] == pytest.approx(0.65)
    half = 1.96 * 0.05 / 40**0.5  # 40 patients, each with the mean over its seeds
    assert row["lo"] == pytest.approx(0.65 - half, abs=0.006)
    assert row["hi"] == pytest.approx(0.65 + half, abs=0.006)


def replaced(column: str, value: object, rows: slice = slice(0, 1)):
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[rows] = [value] * len(values[rows])
        field = pa.field(column, SCHEMA_TYPES[column])
        return table.set_column(
            table.column_names.index(column), field, pa.array(values, field.type)
        )

    return change


SCHEMA_TYPES = {"y_score": pa.float64(), "y_true": pa.int8(), "split": pa.string()}
SCHEMA_TYPES |= dict.fromkeys(("patient_id", "site", "method", "preprocessing_hash"), pa.string())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (replaced("y_score", float("nan")), HeadctError, "NaN"),
        (replaced("y_score", None), HeadctError, "no y_score"),
        (replaced("y_score", 1.5), HeadctError, "outside 0..1"),
        (replaced("y_true", 2), LabelError, "0 or 1"),
        (replaced("split", "train"), LabelError, "two splits"),
        (replaced("site", "elsewhere"), LabelError, "site of a scan"),
        (replaced("method", "other"), MismatchError, "another method"),
        (replaced("preprocessing_hash", "0" * 16), MismatchError, "another preprocessing"),
        (lambda t: t.drop_columns(["seed"]), HeadctError, "lack seed"),
        (lambda t: pa.concat_tables([t, t.slice(t.num_rows - 1)]), HeadctError, "counted twice"),
        (lambda t: t.slice(0, t.num_rows - 1), HeadctError, "no score for 1 labelled cases"),
        (lambda t: t.filter(pc.field("split") == "tune"), HeadctError, "no test scans"),
    ],
)
def test_predictions_that_cannot_be_trusted_stop_the_evaluation(
    make_task, cohort, tmp_path, change, error, words
):
    tasks = [make_task(cohort, "probe"), make_task(cohort, "finetune", change=change)]
    with pytest.raises(error, match=words) as caught:
        evaluate(tasks, tmp_path / "eval", QUICK)
    assert caught.value.remedy
    assert not any(name in str(caught.value) for name in cohort.patient_id)
    assert not (tmp_path / "eval").exists()


def test_one_task_named_twice_is_an_error(make_task, cohort, tmp_path):
    task = make_task(cohort, "probe")
    with pytest.raises(HeadctError, match="same run"):
        evaluate([task, task], tmp_path / "eval", QUICK)


def test_two_encoders_are_no_seeds_of_one_method_unless_they_were_named(make_task, cohort):
    tasks = [make_task(cohort, "probe", seeds=(n,), name=f"probe-{n}") for n in (0, 1)]
    assert len(collect(tasks).runs) == 2
    start = {"bundle_hash": "c" * 16}
    info = load_task(tasks[1]).info
    save_info(tasks[1], info.model_copy(update=start))
    with pytest.raises(MismatchError, match="'probe' start from different encoders") as caught:
        collect(tasks)
    assert "--name" in caught.value.remedy
    for folder, change in zip(tasks, ({}, start), strict=True):
        named = replaced("method", "arm", slice(None))(pq.read_table(folder / PREDICTIONS))
        write_predictions(folder / PREDICTIONS, named)
        save_info(folder, info.model_copy(update={"method": "arm"} | change))
    assert [(run.method, run.seed) for run in collect(tasks).runs] == [("arm", 0), ("arm", 1)]


def test_a_folder_or_file_that_is_no_task_is_named(tmp_path):
    (tmp_path / "thing").touch()
    for name in ("thing", "nothing"):
        with pytest.raises(CheckpointError, match=name):
            collect([tmp_path / name])


def test_two_truths_for_one_scan_are_an_error(make_task, cohort):
    first = make_task(cohort, "probe")
    cohort.truth = np.where(cohort.truth < 0, cohort.truth, 1 - cohort.truth)
    with pytest.raises(LabelError, match="truth of a scan"):
        collect([first, make_task(cohort, "finetune")])


def test_comparing_an_unknown_method_names_the_known_ones(make_task, cohort, tmp_path):
    config = EvaluationConfig(n_boot=0, compare=(("finetune", "nonsense"),))
    with pytest.raises(UsageError, match="nonsense") as caught:
        evaluate([make_task(cohort, "finetune")], tmp_path / "eval", config)
    assert "finetune" in caught.value.remedy


def test_a_folder_with_something_else_is_left_alone(make_task, cohort, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no evaluation"):
        evaluate([make_task(cohort, "finetune")], tmp_path / "eval", QUICK)


def test_methods_that_go_with_the_evaluation_that_is_replaced_are_said(
    make_task, cohort, tmp_path, capsys
):
    out, quick = tmp_path / "eval", EvaluationConfig(n_boot=0)
    one, other = make_task(cohort, "finetune"), make_task(cohort, "probe-histogram")
    evaluate([one, other], out, quick)
    evaluate([one, other], out, quick)
    assert "also had" not in capsys.readouterr().err
    evaluate([one], out, quick)
    said = "the evaluation that was there also had probe-histogram (seed 0, 300 scans)\n"
    assert said in capsys.readouterr().err
    for content in ("{", "{}", '{"methods": [3]}'):
        (out / "evaluation.json").write_text(content)
        evaluate([one], out, quick)
    assert "also had" not in capsys.readouterr().err


def test_runs_are_named_by_method_k_labels_and_seed(make_task, cohort):
    task = make_task(cohort, "fewshot", seeds=(0, 1), shots=(5,))
    assert collect([task]).runs == [RunKey("fewshot", 5, 10, 0), RunKey("fewshot", 5, 10, 1)]


def test_calibration_and_retrieval_have_tables_of_their_own(cohort, make_task, tmp_path):
    tasks = [make_task(cohort, "probe"), make_task(cohort, "probe-histogram")]
    rows = [
        {
            "scan_id": f"c-{i}",
            "patient_id": f"p-{i // 2}",
            "site": "hospital-a",
            "finding": "sdh",
            "average_precision": 0.2 + 0.6 * (i % 4 > 1),
            "chance": 0.25,
        }
        for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tasks[0] / "retrieval.parquet")
    evaluate(tasks, tmp_path / "eval", QUICK)
    tables = tmp_path / "eval" / "tables"
    (found,) = pq.read_table(tables / "retrieval.parquet").to_pylist()
    assert (found["method"], found["site"], found["n"]) == ("probe", "hospital-a", 40)
    assert found["map"] == pytest.approx(0.5)
    # 20 patients, each with one value: the spread of a mean of 20, not of 40
    half = 1.96 * 0.3 / 20**0.5
    assert found["lo"] == pytest.approx(0.5 - half, abs=0.05)
    assert found["hi"] == pytest.approx(0.5 + half, abs=0.05)
    calibration = pq.read_table(tables / "calibration.parquet").to_pylist()
    assert len(calibration) == 2 * 2 * 3  # methods, sites, findings
    assert {row["temperature"] for row in calibration} == {2.0}
    metrics = pq.read_table(tables / "metrics.parquet").to_pylist()
    ece = {
        (r["method"], r["site"], r["finding"]): r["value"]
        for r in metrics
        if r["metric"] == "ece_error"
    }
    for row in calibration:
        assert row["ece"] == pytest.approx(ece[row["method"], row["site"], row["finding"]])
        assert row["ece_raw"] != pytest.approx(row["ece"], abs=1e-3)
