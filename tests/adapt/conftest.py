"""A small labelled world: features that hold some findings and not others."""

from __future__ import annotations

import numpy as np
import pytest

from headct.adapt.features import FeatureTable
from headct.store.labels import Labels
from headct.volume.preprocessing import PRESETS

N, WIDTH, CELLS = 240, 6, 36
FINDINGS = ("sdh", "iph", "noise")


def make_labels(n=N, seed=0):
    rng = np.random.default_rng([seed, n])
    values = (rng.random((n, 3)) < 0.3).astype(np.int8)
    values[rng.random((n, 3)) < 0.1] = -1
    text = [np.array([f"{kind}-{i}" for i in range(n)], dtype=object) for kind in "cps"]
    return Labels(
        findings=FINDINGS,
        values=values,
        scan_id=text[0],
        row=np.arange(n),
        patient_id=text[1],
        study_id=text[2],
        site=np.array(["a" if i % 2 else "b" for i in range(n)], dtype=object),
        split=np.array([("train", "train", "tune", "test")[i % 4] for i in range(n)], dtype=object),
    )


def make_table(labels, source="encoder", seed=1):
    """`cls` holds sdh, one place of `region` holds iph, nothing holds the third finding."""
    n = len(labels)
    rng = np.random.default_rng([seed, n])
    vectors = {
        name: rng.normal(size=(n, WIDTH)).astype(np.float32) for name in ("cls", "mean", "max")
    }
    vectors["cls"][:, 0] += 2 * (labels.values[:, 0] == 1)
    region = rng.normal(size=(n, CELLS, WIDTH)).astype(np.float32)
    region[:, 7, 2] += 3 * (labels.values[:, 1] == 1)
    vectors["region"] = region.reshape(n, -1)
    return FeatureTable(
        scan_id=labels.scan_id,
        patient_id=labels.patient_id,
        study_id=labels.study_id,
        vectors=vectors,
        source=source,
        bundle_hash="b" * 16,
        preprocessing_hash=PRESETS["demo"].hash,
    )


@pytest.fixture
def labels():
    return make_labels()


@pytest.fixture
def table(labels):
    return make_table(labels)
