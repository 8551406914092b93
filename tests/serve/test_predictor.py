"""`headct predict`: the score of evaluation to the last digit, and what is not analysed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from headct.adapt.features import tabulate
from headct.adapt.fewshot import FewshotConfig, run_fewshot
from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.scoring import featuriser
from headct.adapt.start import Start
from headct.cli.app import app
from headct.errors import MismatchError, UsageError
from headct.ingest.pipeline import ingest
from headct.model.architecture import EncoderConfig
from headct.model.bundle import load_bundle, save_bundle
from headct.model.encoder import ViT3D
from headct.phantom.archive import write_archive
from headct.phantom.profile import load_preset
from headct.serve.predictor import SCOPE, load_predictor, to_json, was_skipped
from headct.store.labels import Labels
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS, Preprocessing

FINDINGS = ("sdh", "iph")
COUNTS = ("n_train=16", "n_tune=2", "n_test=2", "n_external=0", "n_pool=0", "faults=false")
TINY = EncoderConfig(
    width=24,
    depth=2,
    heads=2,
    patch_voxels_zyx=(8, 8, 8),
    spacing_mm_zyx=PRESETS["demo"].spacing_mm_zyx,
    n_tokens=60,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Archive, key, store, bundle, a probe on it and a fine-tuned task, all tiny."""
    torch.set_num_threads(1)  # as fine-tuning sets it: the last bits depend on it
    folder = tmp_path_factory.mktemp("predict")
    preset = load_preset("demo", [*COUNTS, "max_matrix=64"])
    write_archive(preset, folder / "archive", 1)
    key = folder / "keys" / "key"
    store_path = folder / "store"
    source = folder / "archive" / "dicom"
    ingest([source], store_path, PRESETS["demo"], jobs=0, key_file=key)
    store = open_store(store_path)
    torch.manual_seed(0)
    save_bundle(folder / "bundle", ViT3D(TINY), PRESETS["demo"])
    bundle = load_bundle(folder / "bundle")
    labels = labels_of(store)
    features = featuriser("encoder", PRESETS["demo"].spacing_mm_zyx, bundle)
    table = tabulate(store, features, source="encoder", bundle_hash=bundle.hash)
    run_probe(table, labels, store.preprocessing, folder / "probe", ProbeConfig(n_folds=2))
    shots = FewshotConfig(shots=(2, 1))
    run_fewshot(table, labels, store.preprocessing, folder / "fewshot", shots)
    config = FinetuneConfig(steps=2, batch=2, threads=1, precision="fp32")
    run_finetune(store, labels, Start("bundle", bundle), folder / "finetune", config)
    return folder


def labels_of(store) -> Labels:
    n = len(store)
    column = store.manifest
    values = np.array([[i % 2, (i // 2) % 2] for i in range(n)], dtype=np.int8)
    split = np.array(["train"] * (n - 4) + ["tune"] * 2 + ["test"] * 2, dtype=object)
    return Labels(
        findings=FINDINGS,
        values=values,
        scan_id=np.array(store.scan_ids, dtype=object),
        row=np.arange(n),
        patient_id=np.array(column["patient_id"].to_pylist(), dtype=object),
        study_id=np.array(column["study_id"].to_pylist(), dtype=object),
        site=np.full(n, "hospital-a", dtype=object),
        split=split,
    )


def predictor_of(made: Path, task: str):
    bundle = None if task == "finetune" else made / "bundle"
    return load_predictor(made / task, bundle, key_file=made / "keys" / "key")


@pytest.mark.parametrize("task", ["probe", "finetune"])
def test_a_study_gets_the_score_of_evaluation_to_the_last_digit(made, task):
    predictor = predictor_of(made, task)
    answers = {a.scan_id: a for a in predictor.predict([made / "archive" / "dicom"]) if a.scan_id}
    rows = pq.read_table(made / task / "predictions.parquet").to_pylist()
    assert len(rows) == 4 * len(FINDINGS)
    for row in rows:
        findings = {found.finding: found for found in answers[row["scan_id"]].findings}
        found = findings[row["finding"]]
        assert found.score == row["y_score"]
        assert found.threshold == predictor.info.thresholds[row["finding"]]
        assert found.called == (found.score >= found.threshold)


def test_few_shots_are_predicted_by_the_first_draw_of_the_most(made):
    predictor = predictor_of(made, "fewshot")
    answers = {a.scan_id: a for a in predictor.predict([made / "archive" / "dicom"]) if a.scan_id}
    rows = pq.read_table(made / "fewshot" / "predictions.parquet").to_pylist()
    rows = [row for row in rows if (row["k"], row["seed"]) == (2, 0)]
    assert len(rows) == 2 * len(FINDINGS)
    assert predictor.info.head_k == 2
    for row in rows:
        findings = {found.finding: found for found in answers[row["scan_id"]].findings}
        found = findings[row["finding"]]
        assert found.score == row["y_score"]
        assert found.threshold is None
        assert found.called is None


def test_a_bad_file_is_not_analysed_and_the_next_is(made, tmp_path):
    good = next((made / "archive" / "dicom").rglob("*.dcm"), None) or next(
        path for path in (made / "archive" / "dicom").rglob("*") if path.is_file()
    )
    shutil.copytree(good.parent, tmp_path / "in" / "good")
    (tmp_path / "in" / "empty.dcm").touch()
    (tmp_path / "in" / "note.txt").write_text("a note")
    answers = list(predictor_of(made, "probe").predict([tmp_path / "in"]))
    by_reason = {answer.reason: answer for answer in answers}
    assert by_reason["empty-file"].status == "not-analysed"
    assert by_reason["empty-file"].message
    assert was_skipped(by_reason["not-dicom"])
    assert not was_skipped(by_reason["empty-file"])
    assert by_reason[""].status == "analysed"
    assert by_reason[""].seconds > 0
    assert not by_reason["empty-file"].findings


def test_every_answer_carries_scope_hashes_and_no_word_of_being_normal(made, tmp_path):
    predictor = predictor_of(made, "probe")
    one = next(predictor.predict([made / "archive" / "dicom"]))
    text = json.dumps(to_json(one, predictor.about()))
    assert json.loads(text)["scope"] == SCOPE
    assert json.loads(text)["bundle_hash"] == load_bundle(made / "bundle").hash
    assert json.loads(text)["preprocessing_hash"] == PRESETS["demo"].hash
    assert "normal" not in text.lower()
    assert "PH0000" not in text
    assert str(made) not in text


def test_another_bundle_is_a_mismatch(made, tmp_path):
    torch.manual_seed(1)
    save_bundle(tmp_path / "other", ViT3D(TINY), PRESETS["demo"])
    with pytest.raises(MismatchError, match="was made with bundle"):
        load_predictor(made / "probe", tmp_path / "other", key_file=made / "keys" / "key")


def test_another_preprocessing_is_a_mismatch(made, tmp_path):
    other = Preprocessing(**PRESETS["demo"].model_dump(exclude={"hash"}) | {"vertex_margin_mm": 9})
    save_bundle(tmp_path / "other", load_bundle(made / "bundle").encoder, other)
    with pytest.raises(MismatchError, match="preprocessing"):
        load_predictor(made / "probe", tmp_path / "other", key_file=made / "keys" / "key")


def test_a_probe_without_its_encoder_says_how_to_give_it(made):
    with pytest.raises(UsageError, match="encoder") as caught:
        load_predictor(made / "probe", key_file=made / "keys" / "key")
    assert "--bundle" in caught.value.remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error(made):
    arguments = ["predict", str(made / "archive"), "--task", str(made / "finetune")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
    assert isinstance(result.exception, UsageError)
    assert "no GPU" in result.exception.message


def test_the_verb_answers_in_json_and_exits_with_1_where_something_was_refused(made, tmp_path):
    series = next(path for path in (made / "archive" / "dicom").rglob("*") if path.is_file()).parent
    shutil.copytree(series, tmp_path / "in" / "series")
    (tmp_path / "in" / "empty.dcm").touch()
    command = ["predict", str(tmp_path / "in"), "--task", str(made / "finetune"), "--json"]
    key = ["--key", str(made / "keys" / "key")]
    answer = CliRunner().invoke(app, [*command, *key])
    assert answer.exit_code == 1
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    assert {row["status"] for row in rows} == {"analysed", "not-analysed"}
    (tmp_path / "in" / "empty.dcm").unlink()
    answer = CliRunner().invoke(app, [part for part in [*command, *key] if part != "--json"])
    assert answer.exit_code == 0, answer.output
    assert "research use only" in answer.stdout
    assert "sdh" in answer.stdout
    assert "normal" not in answer.stdout


def test_answers_come_path_by_path_and_a_scan_is_analysed_once(made, tmp_path):
    dicom = made / "archive" / "dicom"
    series = sorted({path.parent for path in dicom.rglob("*") if path.is_file()})[:3]
    paths = [series[2], series[0], tmp_path / "again", series[1]]
    shutil.copytree(series[0], tmp_path / "again")
    (tmp_path / "again" / "empty.dcm").touch()
    answers = list(predictor_of(made, "probe").predict(paths))
    numbers = [answer.path_number for answer in answers]
    assert numbers == sorted(numbers)
    assert set(numbers) <= {1, 2, 3, 4}
    names = [answer.scan_id for answer in answers if answer.status == "analysed"]
    assert len(names) == len(set(names))
    alone = {a.scan_id for a in predictor_of(made, "probe").predict([series[2]]) if a.scan_id}
    assert alone == {a.scan_id for a in answers if a.path_number == 1 and a.scan_id}
    assert [a.path_number for a in answers if a.reason == "empty-file"] == [3]


def test_an_image_under_two_names_is_analysed_once(made, tmp_path):
    hu = open_store(made / "store").read_hu([0])[0]
    for name in ("a.nii", "b.nii"):
        nib.save(
            nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([3.3, 3.3, 3.3, 1])), tmp_path / name
        )
    answers = list(predictor_of(made, "probe").predict([tmp_path]))
    assert sorted(answer.status for answer in answers) == ["analysed", "not-analysed"]
    assert [answer.reason for answer in answers if answer.reason] == ["twin"]
    assert all(was_skipped(answer) for answer in answers if answer.reason)


def test_a_fine_tuned_task_answers_with_the_hash_of_its_own_encoder(made):
    about = predictor_of(made, "finetune").about()
    assert about["bundle_hash"] == load_bundle(made / "finetune" / "bundle").hash
    assert about["bundle_hash"] != load_bundle(made / "bundle").hash
    assert predictor_of(made, "probe").about()["bundle_hash"] == load_bundle(made / "bundle").hash
