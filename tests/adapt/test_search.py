"""The learning rate is chosen on train patients alone; the training proper stays as it was."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from headct.adapt.finetune import FinetuneConfig, run_finetune
from headct.adapt.search import SearchConfig, search_rate
from headct.adapt.start import Start
from headct.model.bundle import load_bundle
from headct.store.labels import read_labels
from headct.store.store import open_store


class Constant(nn.Module):
    """Logits that are the same for every scan."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, hu):
        return torch.full((len(hu), 2), float(self.logit))


@pytest.fixture(scope="module")
def store(world):
    return open_store(world / "store")


@pytest.fixture(scope="module")
def labels(world, store):
    return read_labels(world / "labels.csv", store.manifest)


def test_each_rate_is_tried_once_on_the_same_patients_and_judged_by_others(tmp_path, store, labels):
    fitted = labels.take(labels.positions("train"))
    seen = []

    def train(some, lr, folder):
        seen.append((lr, tuple(some.patient_id)))
        return Constant(np.log(lr))

    config = SearchConfig(lr=(0.5, 1e-3), n_parts=4)
    losses = search_rate(train, store, fitted, config, tmp_path, {"run": "1"}, seed=0)
    assert [lr for lr, _ in seen] == [0.5, 1e-3]
    assert seen[0][1] == seen[1][1]
    judges = fitted.take(np.flatnonzero(~np.isin(fitted.patient_id, seen[0][1])))
    assert 3 <= len(judges) <= 7
    for lr, loss in losses.items():
        p = lr / (1 + lr)
        of_finding = [
            -np.log(np.where(column[column >= 0] == 1, p, 1 - p)).mean()
            for column in judges.values.T
        ]
        assert loss == pytest.approx(np.mean(of_finding))
    assert search_rate(train, store, fitted, config, tmp_path, {"run": "1"}, seed=0) == losses
    assert len(seen) == 2, "what is done is not done again"
    search_rate(train, store, fitted, config, tmp_path, {"run": "2"}, seed=0)
    assert len(seen) == 4, "what another run left is not believed"


def test_the_net_is_that_of_the_chosen_rate_on_all_train_scans(tmp_path, world, store, labels):
    start = Start("vit", load_bundle(world / "bundle"))
    plain = FinetuneConfig(steps=4, batch=4, precision="fp32", threads=1)
    searching = plain.model_copy(update={"search": SearchConfig(lr=(1e-2, 1e-7), n_parts=2)})
    run_finetune(store, labels, start, tmp_path / "searched", searching)
    info = json.loads((tmp_path / "searched" / "task.json").read_text())
    best = min(info["searched"], key=info["searched"].get)
    assert set(info["searched"]) == {"0.01", "1e-07"}
    run_finetune(store, labels, start, tmp_path / "plain", plain.at_rate(float(best)))
    scores = [
        pq.read_table(tmp_path / name / "predictions.parquet")["y_score"].to_pylist()
        for name in ("searched", "plain")
    ]
    assert scores[0] == scores[1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
