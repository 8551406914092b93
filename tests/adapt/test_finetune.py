from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from headct.adapt import operating
from headct.adapt.batches import LIGHT, LabelledScans, lateral_pairs, sides_alone
from headct.adapt.embed import embed_source
from headct.adapt.features import read_features
from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.network import EncoderNet, ReadoutHead, layer_scale_of
from headct.adapt.probe import ProbeConfig, run_probe
from headct.adapt.readout import fit_readout
from headct.adapt.resnets import ResnetConfig
from headct.adapt.scoring import score_store, scorer
from headct.adapt.start import Start, probe_head
from headct.adapt.supervise import Averaged, SuperviseOptim, known_label_loss, positive_weights
from headct.adapt.task import load_task
from headct.errors import MismatchError, StoreError, UsageError
from headct.model.bundle import load_bundle, save_bundle
from headct.model.embed import pooled
from headct.model.encoder import ViT3D
from headct.store.labels import read_labels
from headct.store.store import Store, open_store

from .conftest import GRID, TINY, require_written_task_holds

CONFIG = FinetuneConfig(
    steps=6,
    batch=4,
    checkpoint_every=2,
    precision="fp32",
    threads=1,
    resnet=ResnetConfig(depth=10),
)


@pytest.fixture(scope="module")
def store(world):
    return open_store(world / "store")


@pytest.fixture(scope="module")
def labels(world, store):
    return read_labels(world / "labels.csv", store.manifest)


@pytest.fixture
def bundle(world):
    return load_bundle(world / "bundle")


def finetuned(tmp_path, store, labels, start, config=CONFIG, name="task"):
    run_finetune(store, labels, start, tmp_path / name, config)
    return tmp_path / name


def predictions(folder):
    return pq.read_table(folder / "predictions.parquet").to_pylist()


@pytest.mark.parametrize("kind", ["bundle", "vit", "cnn3d", "resnet3d", "slices2d"])
def test_a_task_scores_volumes_as_its_predictions_say(
    tmp_path, store, labels, bundle, kind, monkeypatch
):
    monkeypatch.setattr(operating, "FEWEST_TO_CALIBRATE", 2)  # there are ten tune scans
    if kind in ("resnet3d", "slices2d"):
        pytest.importorskip("monai", reason="the extra `baselines` is not installed")
    start = Start(kind, bundle if kind in ("bundle", "vit") else None)
    folder = finetuned(tmp_path, store, labels, start)
    task = load_task(folder)
    shown = labels.take(np.flatnonzero(labels.split != "train"))
    scores = score_store(scorer(task), store, shown.row.tolist())
    alone = np.concatenate([score_store(scorer(task), store, [row]) for row in shown.row])
    np.testing.assert_array_equal(scores, alone)
    position = {name: i for i, name in enumerate(shown.scan_id)}
    for row in predictions(folder):
        score = scores[position[row["scan_id"]], labels.findings.index(row["finding"])]
        assert row["y_score"] == score
        assert row["bundle_hash"] == (bundle.hash if kind == "bundle" else "")
    assert set(task.info.thresholds) == {"clot", "coin"}
    assert task.info.temperatures["clot"] != 1
    require_written_task_holds(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task"]


def test_before_the_first_step_the_net_is_the_probe(tmp_path, world, store, labels, bundle):
    embed_source(world / "store", tmp_path / "f.parquet", "encoder", bundle)
    table = read_features(tmp_path / "f.parquet")
    run_probe(table, labels, GRID, tmp_path / "probe", ProbeConfig())
    train = labels.take(labels.positions("train"))
    head = probe_head(bundle, store, train, ProbeConfig(), seed=0)
    net = EncoderNet(bundle.encoder, head, GRID.spacing_mm_zyx).eval()
    hu = store.read_hu(list(range(8)))
    with torch.no_grad():
        own = net(torch.from_numpy(hu).float()).sigmoid().numpy()
    readout, logistic = head.export()
    np.testing.assert_allclose(own, logistic.scores(readout.apply(exact(bundle, hu))), atol=1e-4)
    task = load_task(tmp_path / "probe")
    np.testing.assert_allclose(readout.arrays["scale"], task.arrays["readout.scale"], rtol=1e-5)
    np.testing.assert_allclose(logistic.weight, task.arrays["weight"], atol=1e-5)
    from_table = task.score_vectors(table.of([f"c-{i}" for i in range(8)]).vectors)
    np.testing.assert_allclose(scorer(task, bundle)(hu), from_table, atol=1e-6)


def exact(bundle, hu):
    """Vectors without the rounding of tables."""
    embedding = pooled(bundle.encode_hu(hu))
    names = ("cls", "mean", "max", "region")
    return {name: getattr(embedding, name).reshape(len(hu), -1) for name in names}


def test_an_encoder_that_moves_starts_from_few_components(store, labels, bundle, monkeypatch):
    monkeypatch.setattr("headct.adapt.start.N_COMPONENTS", 3)
    train = labels.take(labels.positions("train"))
    head = probe_head(bundle, store, train, ProbeConfig(), seed=0)
    assert head.components.shape == (bundle.encoder.config.width, 3)


def test_a_head_comes_out_as_it_went_in(store, labels, bundle):
    train = labels.take(labels.positions("train"))
    head = probe_head(bundle, store, train, ProbeConfig(), seed=0)
    readout, logistic = head.export()
    again = ReadoutHead(readout, logistic)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tmp_path, store, labels, bundle, monkeypatch
):
    start = Start("bundle", bundle)
    whole = finetuned(tmp_path, store, labels, start, name="whole")
    follow = Averaged.follow

    def cut_off(self, decay, step):
        if step == 4:
            raise KeyboardInterrupt
        follow(self, decay, step)

    monkeypatch.setattr(Averaged, "follow", cut_off)
    with pytest.raises(KeyboardInterrupt):
        finetuned(tmp_path, store, labels, start, name="cut")
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(Averaged, "follow", follow)
    cut = finetuned(tmp_path, store, labels, start, name="cut")
    for name in ("head.safetensors", "bundle/encoder.safetensors"):
        first, second = load_file(whole / name), load_file(cut / name)
        assert [key for key in first if not np.array_equal(first[key], second[key])] == []
    assert predictions(whole) == predictions(cut)


@pytest.mark.parametrize("kind", ["bundle", "cnn3d"])
def test_weights_on_positives_leave_no_bias_behind(tmp_path, store, labels, bundle, kind):
    """Without a step to learn in, a task scores as the start does, whatever the weights."""
    start = Start(kind, bundle if kind == "bundle" else None)
    scores = []
    for power in (0.0, 1.0):
        config = CONFIG.model_copy(
            update={"positive_weight_power": power, "optim": SuperviseOptim(lr=1e-12, final_lr=0)}
        )
        folder = finetuned(tmp_path, store, labels, start, config, f"task-{power}")
        scores.append([row["y_score"] for row in predictions(folder)])
    np.testing.assert_allclose(*scores, atol=2e-5)


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(tmp_path, store, labels, monkeypatch):
    start = Start("cnn3d")
    other = CONFIG.model_copy(update={"steps": 4})
    monkeypatch.setattr("headct.adapt.finetune.replacing_folder", _full_disk)
    with pytest.raises(OSError, match="full"):
        finetuned(tmp_path, store, labels, start)
    monkeypatch.undo()
    folder = finetuned(tmp_path, store, labels, start, other)
    fresh = finetuned(tmp_path, store, labels, start, other, name="fresh")
    assert predictions(folder) == predictions(fresh)


def _full_disk(folder):
    raise OSError("full")


def test_training_lowers_the_loss(tmp_path, store, labels, bundle):
    config = CONFIG.model_copy(update={"steps": 40, "head_lr_factor": 10.0})
    folder = finetuned(tmp_path, store, labels, Start("vit", bundle), config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 40
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to score on")
@pytest.mark.parametrize("kind", ["bundle", "cnn3d"])
def test_a_gpu_scores_as_a_cpu_does(tmp_path, world, store, labels, kind):
    start = Start(kind, load_bundle(world / "bundle", device="cuda") if kind == "bundle" else None)
    task = load_task(finetuned(tmp_path, store, labels, start))
    hu = store.read_hu(range(4))
    on_gpu, on_cpu = (scorer(task, device=torch.device(name))(hu) for name in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=2e-3)


def test_another_preprocessing_or_bundle_is_refused(tmp_path, store, labels, bundle):
    foreign = GRID.model_copy(update={"spacing_mm_zyx": (9.0, 9.0, 9.0)})
    save_bundle(tmp_path / "foreign", ViT3D(TINY), foreign)
    other = load_bundle(tmp_path / "foreign")
    with pytest.raises(MismatchError, match="preprocessing"):
        finetuned(tmp_path, store, labels, Start("bundle", other))
    task = load_task(finetuned(tmp_path, store, labels, Start("bundle", bundle)))
    with pytest.raises(MismatchError, match="made with bundle"):
        scorer(task, other)
    with pytest.raises(UsageError, match="no preset"):
        finetuned(tmp_path, store, labels, Start("vit"))


def test_the_loss_is_the_mean_over_known_labels():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(-1, 2, (5, 3))
    weight = np.array([1.0, 2.0, 3.0])
    total, known = 0.0, 0
    for i, f in np.argwhere(labels >= 0):
        target = labels[i, f] * 0.9 + 0.05
        p = 1 / (1 + np.exp(-logits[i, f]))
        total -= weight[f] * target * np.log(p) + (1 - target) * np.log(1 - p)
        known += 1
    loss = known_label_loss(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weight).float(), 0.1
    )
    assert float(loss) == pytest.approx(total / known, rel=1e-5)
    nothing = known_label_loss(torch.zeros(2, 3), -torch.ones(2, 3), torch.ones(3), 0.1)
    assert float(nothing) == 0.0


def test_positive_weights_leave_unknown_labels_out():
    values = np.array([[1, 1], [0, -1], [0, 0], [0, 0], [0, 0]], dtype=np.int8)
    np.testing.assert_allclose(positive_weights(values, 0.5), [2.0, 3**0.5])
    np.testing.assert_allclose(positive_weights(np.array([[1]] + [[0]] * 50), 1.0), [10.0])


def test_a_flip_exchanges_findings_that_name_a_side(store, labels):
    assert lateral_pairs(["x", "bleed_left", "bleed_right", "y_left"]) == [(1, 2)]
    sided = labels.take(labels.positions("train"))
    object.__setattr__(sided, "findings", ("bleed_left", "bleed_right"))
    scans = LabelledScans(store, sided, 16, 0, LIGHT, torch.device("cpu"))
    read = scans.loader.read(0)
    made = scans.make(read, 0)
    flipped = scans.maker.draw(read.places)[0]["flip"].numpy() > 0
    assert 0 < flipped.sum() < 16
    values = sided.values[list(read.rows)]
    np.testing.assert_array_equal(made.labels[~flipped], values[~flipped])
    np.testing.assert_array_equal(made.labels[flipped], values[flipped][:, ::-1])
    again = scans.make(read, 0)
    assert torch.equal(made.hu, again.hu)


def test_nothing_is_flipped_where_a_finding_names_one_side_alone(store, labels):
    assert sides_alone(["x", "bleed_left", "bleed_right", "y_left", "z_right"]) == [
        "y_left",
        "z_right",
    ]
    sided = labels.take(labels.positions("train"))
    object.__setattr__(sided, "findings", ("bleed_left", "x"))
    scans = LabelledScans(store, sided, 16, 0, LIGHT, torch.device("cpu"))
    read = scans.loader.read(0)
    assert not scans.maker.draw(read.places)[0]["flip"].any()
    np.testing.assert_array_equal(scans.make(read, 0).labels, sided.values[list(read.rows)])


def test_who_trains_one_side_alone_is_told(tmp_path, store, labels, bundle, capsys):
    sided = labels.take(np.arange(len(labels)))
    object.__setattr__(sided, "findings", ("clot_left", "coin"))
    finetuned(tmp_path, store, sided, Start("bundle", bundle))
    assert "no flips: clot_left names a side" in capsys.readouterr().err


def test_learning_rates_fall_block_by_block():
    factor = layer_scale_of(depth=2, decay=0.5, head_factor=10.0)
    assert factor("head.weight") == 10.0
    assert factor("encoder.norm.weight") == 1.0
    assert factor("encoder.blocks.1.mlp.fc1.weight") == 0.5
    assert factor("encoder.blocks.0.mlp.fc1.weight") == 0.25
    assert factor("encoder.patch_embed.weight") == 0.125


def test_random_weights_are_a_function_of_their_seed(tmp_path, world, bundle):
    def table(seed, name):
        embed_source(world / "store", tmp_path / name, "random-init", bundle, init_seed=seed)
        return read_features(tmp_path / name)

    first, again, other = table(1, "first"), table(1, "again"), table(2, "other")
    np.testing.assert_array_equal(first.vectors["cls"], again.vectors["cls"])
    assert (first.vectors["cls"] != other.vectors["cls"]).any()
    assert (first.source, first.init_seed) == ("random-init", 1)
    fitted = fit_readout(first, np.arange(10))
    assert fitted.vectors == ("cls", "mean", "max", "region")


def test_a_train_scan_that_cannot_be_read_is_said(tmp_path, store, labels, monkeypatch, capsys):
    train = labels.take(labels.positions("train"))
    real = Store.read_hu

    def read_hu(self, rows, **options):
        if train.row[3] in rows:
            raise StoreError("damaged", code="damaged-scan")
        return real(self, rows, **options)

    monkeypatch.setattr(Store, "read_hu", read_hu)
    config = CONFIG.model_copy(update={"steps": 12, "batch": 4})
    finetuned(tmp_path, store, labels, Start("cnn3d", None), config)
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be read" in line]
    assert len(said) == 1
    assert f"scan {train.scan_id[3]} cannot be read [damaged-scan]" in said[0]
