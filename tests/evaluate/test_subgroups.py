"""Subgroups: the same numbers as an evaluation of those scans alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from headct.errors import MismatchError
from headct.evaluate.collect import collect
from headct.evaluate.evaluation import EvaluationConfig, evaluate
from headct.evaluate.report import render
from headct.evaluate.results import read_results
from headct.evaluate.subgroups import groups_of
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import Preprocessing

GRID = Preprocessing(shape_zyx=(2, 2, 2), spacing_mm_zyx=(10.0, 10.0, 10.0))


@pytest.fixture
def store(cohort, tmp_path):
    with StoreWriter(tmp_path / "store", GRID, shard_scans=64) as writer:
        for i, (scan, patient) in enumerate(zip(cohort.scan_id, cohort.patient_id, strict=True)):
            hu = np.full(GRID.shape_zyx, i % 2000, np.int16)
            row = {
                "scan_id": scan,
                "patient_id": patient,
                "study_id": f"s-{i}",
                "series_id": f"e-{i}",
                "status": "accepted",
                "affine_zyx": np.eye(4),
                "sex": ("F", "M", None)[i % 3],
                "age_years": (10.0, 18.0, 79.9, 80.0)[i % 4],
                "slice_thickness_mm": 5.0,
            }
            writer.append(hu, row)
    return tmp_path / "store"


def test_groups_follow_the_manifest_and_one_that_is_all_alike_is_no_group(cohort, make_task, store):
    from headct.store.store import open_store

    (site, _) = collect([make_task(cohort, "probe")]).sites
    groups = {(d, g): part for d, g, part in groups_of(site, open_store(store).manifest)}
    assert set(groups) == {
        *(("sex", name) for name in ("female", "male", "unknown")),
        *(("age", name) for name in ("below 18 years", "18 to 40 years", "60 to 80 years")),
        ("age", "80 years and more"),
    }
    women = groups["sex", "female"]
    expected = {scan for i, scan in enumerate(cohort.scan_id) if i % 3 == 0}
    assert set(women.scan_ids) == expected & set(site.scan_ids)
    assert women.patient_of.max() + 1 == len(np.unique(women.patient_of))


def test_a_subgroup_has_the_numbers_of_its_scans_alone(cohort, make_task, store, tmp_path):
    task = make_task(cohort, "probe")
    config = EvaluationConfig(n_boot=20, min_positives=5)
    evaluate([task, make_task(cohort, "probe-histogram")], tmp_path / "eval", config, store)
    rows = pq.read_table(tmp_path / "eval" / "tables" / "subgroups.parquet").to_pylist()
    (found,) = [
        r
        for r in rows
        if (r["dimension"], r["group"], r["site"]) == ("sex", "male", "hospital-a")
        and (r["method"], r["finding"], r["metric"]) == ("probe", "sdh", "auroc")
    ]
    men = {scan for i, scan in enumerate(cohort.scan_id) if i % 3 == 1}
    cases = [
        (r["y_true"], r["y_score"])
        for r in pq.read_table(task / "predictions.parquet").to_pylist()
        if r["scan_id"] in men
        and (r["site"], r["finding"]) == ("hospital-a", "sdh")
        and r["split"] == "test"
    ]
    assert found["n"] == len(cases)
    assert found["value"] == pytest.approx(roc_auc_score(*zip(*cases, strict=True)))
    assert "60 to 80 years" in render(read_results(tmp_path / "eval"))


def test_a_store_of_other_scans_is_refused(cohort, make_task, store):
    from headct.store.store import open_store

    (site, _) = collect([make_task(cohort, "probe")]).sites
    manifest = open_store(store).manifest
    with pytest.raises(MismatchError, match="lacks 1 of"):
        list(
            groups_of(
                site, manifest.filter(pa.array(manifest["scan_id"].to_numpy() != site.scan_ids[0]))
            )
        )
