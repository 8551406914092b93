"""LoRA leaves the encoder alone but for low-rank changes, and a plain bundle behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.lora import LoraConfig, add_lora, fold_lora
from headct.adapt.scoring import score_store, scorer
from headct.adapt.start import Start
from headct.adapt.supervise import Averaged, SuperviseOptim
from headct.adapt.task import load_task
from headct.errors import UsageError
from headct.model.bundle import load_bundle
from headct.model.encoder import ViT3D
from headct.store.labels import read_labels
from headct.store.store import open_store

from .conftest import GRID, TINY

pytest.importorskip("peft", reason="the extra `lora` is not installed")
CONFIG = FinetuneConfig(
    steps=6,
    batch=4,
    checkpoint_every=2,
    precision="fp32",
    threads=1,
    lora=LoraConfig(rank=2),
    optim=SuperviseOptim(lr=1e-2),
)


def encoder():
    torch.manual_seed(0)
    return ViT3D(TINY)


def test_changes_start_at_zero_and_are_all_that_is_trained():
    plain, adapted = encoder(), encoder()
    add_lora(adapted, LoraConfig(rank=2), seed=0)
    hu = torch.randn(2, *GRID.shape_zyx) * 100
    with torch.no_grad():
        before = plain.eval().forward_hu(hu, GRID.spacing_mm_zyx).cls
        after = adapted.eval().forward_hu(hu, GRID.spacing_mm_zyx).cls
    torch.testing.assert_close(before, after)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 4 * TINY.depth


def test_folding_keeps_the_function_and_the_names():
    adapted, plain = encoder(), encoder()
    add_lora(adapted, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        hu = torch.randn(1, *GRID.shape_zyx) * 100
        before = adapted.eval().forward_hu(hu, GRID.spacing_mm_zyx).patches
        fold_lora(adapted)
        after = adapted.forward_hu(hu, GRID.spacing_mm_zyx).patches
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert adapted.state_dict().keys() == plain.state_dict().keys()


def test_a_lora_task_differs_from_its_bundle_by_low_rank_matrices(world, tmp_path):
    store, bundle = open_store(world / "store"), load_bundle(world / "bundle")
    labels = read_labels(world / "labels.csv", store.manifest)
    info = run_finetune(store, labels, Start("bundle", bundle), tmp_path / "task", CONFIG)
    assert (info.kind, info.method) == ("lora", "lora")
    changed = load_bundle(tmp_path / "task" / "bundle").encoder.state_dict()
    for name, before in bundle.encoder.state_dict().items():
        difference = changed[name] - before
        if name.startswith("blocks") and name.endswith(("qkv.weight", "fc1.weight")):
            assert torch.linalg.matrix_rank(difference, atol=1e-5) <= 2
            assert difference.abs().max() > 1e-4
        elif not name.endswith("weight") or "norm" in name:
            assert difference.abs().max() == 0
    task = load_task(tmp_path / "task")
    shown = labels.take(np.flatnonzero(labels.split != "train"))
    assert np.isfinite(score_store(scorer(task), store, shown.row.tolist())).all()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(world, tmp_path, monkeypatch):
    store, bundle = open_store(world / "store"), load_bundle(world / "bundle")
    labels = read_labels(world / "labels.csv", store.manifest)
    start = Start("bundle", bundle)
    run_finetune(store, labels, start, tmp_path / "whole", CONFIG)
    follow = Averaged.follow

    def cut_off(self, decay, step):
        if step == 4:
            raise KeyboardInterrupt
        follow(self, decay, step)

    monkeypatch.setattr(Averaged, "follow", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_finetune(store, labels, start, tmp_path / "cut", CONFIG)
    monkeypatch.setattr(Averaged, "follow", follow)
    run_finetune(store, labels, start, tmp_path / "cut", CONFIG)
    whole, cut = (load_bundle(tmp_path / name / "bundle") for name in ("whole", "cut"))
    assert whole.hash == cut.hash


def test_lora_wants_a_trained_encoder_and_layers_that_are_there(world, tmp_path):
    store = open_store(world / "store")
    labels = read_labels(world / "labels.csv", store.manifest)
    with pytest.raises(UsageError, match="trained encoder"):
        run_finetune(store, labels, Start("cnn3d"), tmp_path / "task", CONFIG)
    with pytest.raises(UsageError, match="no layer nope"):
        add_lora(encoder(), LoraConfig(rank=2, layers=("qkv", "nope")), seed=0)
