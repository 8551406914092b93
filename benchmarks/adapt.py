"""What adaptation and evaluation cost: probe, bootstrap, embedding once, one prediction.

    python benchmarks/adapt.py [--only CASE] [--scans 10000]

Prints one JSON line per case.

- `probe`: linear probe of 10 findings on cached vectors (CLS, mean, max and region of ViT-S) of
  that many train scans, with its cross-validation, temperatures and thresholds; CPU seconds.
- `bootstrap`: `headct evaluate` of its predictions on as many test scans, 2,000 resamples.
- `embed-once`: a probe on a frozen encoder, of which the features are computed once, against one
  that runs the encoder again in every one of 100 passes; both measured on a few scans, side by
  side, and the ratio of their CPU seconds at that many scans.
- `predict`: one DICOM series of 512 x 512 x 40 through `headct predict` with ViT-S: `cold` with the
  start of Python, `warm` the second series of one process; wall clock, and CPU seconds, which a
  busy machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

FINDINGS = tuple(f"finding-{i}" for i in range(10))
WIDTH, CELLS = 384, 36
PASSES = 100
SITES = ("internal", "external")


def labelled(n_train: int) -> tuple[Any, Any]:
    """Labels and vectors of made-up patients: a few directions of noise carry each finding."""
    from headct.adapt.features import FeatureTable
    from headct.store.labels import Labels

    rng = np.random.default_rng(0)
    sizes = {"train": n_train, "tune": n_train // 4, "test": n_train}
    split = np.repeat(list(sizes), list(sizes.values())).astype(object)
    n = len(split)
    values = (rng.random((n, len(FINDINGS))) < 0.15).astype(np.int8)
    vectors = {name: rng.standard_normal((n, WIDTH), np.float32) for name in ("cls", "mean", "max")}
    vectors["cls"][:, : len(FINDINGS)] += values
    vectors["region"] = rng.standard_normal((n, CELLS * WIDTH), np.float32)
    ids = {
        kind: np.array([f"{kind}-{i}" for i in range(n)], dtype=object)
        for kind in ("scan_id", "patient_id", "study_id")
    }
    site = np.array([SITES[i % 2] if split[i] == "test" else SITES[0] for i in range(n)], object)
    labels = Labels(
        findings=FINDINGS, values=values, row=np.arange(n), site=site, split=split, **ids
    )
    table = FeatureTable(
        **ids, vectors=vectors, source="encoder", bundle_hash="", preprocessing_hash=""
    )
    return labels, table


def probe_and_bootstrap(folder: Path, n_train: int) -> list[dict[str, Any]]:
    """The cases `probe` and `bootstrap`."""
    from headct.adapt.probe import ProbeConfig, run_probe
    from headct.evaluate.evaluation import EvaluationConfig, evaluate
    from headct.volume.preprocessing import PRESETS

    labels, table = labelled(n_train)
    grid = PRESETS["small"]
    start = time.process_time()
    run_probe(table, labels, grid, folder / "task", ProbeConfig())
    fitted = time.process_time()
    evaluate([folder / "task"], folder / "eval", EvaluationConfig(n_boot=2000))
    done = time.process_time()
    about = {"scans": n_train, "findings": len(FINDINGS)}
    return [
        {"case": "probe", **about, "cpu_s": round(fitted - start, 1)},
        {"case": "bootstrap", **about, "resamples": 2000, "cpu_s": round(done - fitted, 1)},
    ]


def small_bundle(folder: Path) -> Path:
    """ViT-S with new weights: what it answers does not change what it costs."""
    import torch

    from headct.model.architecture import ENCODERS
    from headct.model.bundle import save_bundle
    from headct.model.encoder import ViT3D
    from headct.volume.preprocessing import PRESETS

    torch.manual_seed(0)
    save_bundle(folder / "bundle", ViT3D(ENCODERS["small"]), PRESETS["small"])
    return folder / "bundle"


def embed_once(folder: Path, n_train: int) -> dict[str, Any]:
    """CPU seconds of a linear probe with features computed once, and with an encoder in each pass.

    In a pass of the second kind a scan goes through the encoder, and a step of the linear layer is
    taken: that is how a frozen encoder is probed where features are not kept.
    """
    import torch

    from headct.adapt.probe import ProbeConfig, run_probe
    from headct.adapt.scoring import encoder_vectors
    from headct.model.bundle import load_bundle
    from headct.volume.preprocessing import PRESETS

    torch.set_num_threads(1)
    bundle = load_bundle(small_bundle(folder))
    grid, n = PRESETS["small"], 8
    rng = np.random.default_rng(0)
    hu = np.full((n, *grid.shape_zyx), -1000, np.int16)
    hu[:, 8:88, 12:108, 12:84] = rng.normal(35, 10, (n, 80, 96, 72))
    encoder_vectors(bundle, hu[:1])
    start = time.process_time()
    encoder_vectors(bundle, hu)
    embed_s = (time.process_time() - start) / n
    linear = torch.nn.Linear(WIDTH, len(FINDINGS))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    start = time.process_time()
    for scan in hu:
        loss = linear(torch.from_numpy(encoder_vectors(bundle, scan[None])["cls"])).square().mean()
        loss.backward()
        optimizer.step()
    pass_s = (time.process_time() - start) / n
    labels, table = labelled(n_train)
    start = time.process_time()
    run_probe(table, labels, grid, folder / "task-once", ProbeConfig())
    fit_s = time.process_time() - start
    once, again = n_train * embed_s + fit_s, n_train * pass_s * PASSES
    return {
        "case": "embed-once",
        "scans": n_train,
        "passes": PASSES,
        "embed_cpu_s_per_scan": round(embed_s, 3),
        "once_cpu_s": round(once),
        "every_pass_cpu_s": round(again),
        "ratio": round(again / once, 1),
    }


def predict(folder: Path) -> dict[str, Any]:
    """Wall seconds of one DICOM series, cold and warm."""
    from preprocess import scan  # the same 512 x 512 x 40 phantom

    from headct.adapt.probe import ProbeConfig, run_probe
    from headct.adapt.scoring import encoder_vectors
    from headct.model.bundle import load_bundle
    from headct.phantom.dicom import encode_series
    from headct.phantom.plan import plan_studies
    from headct.phantom.profile import load_preset
    from headct.phantom.study import rendered_series
    from headct.serve.predictor import load_predictor
    from headct.volume.preprocessing import PRESETS

    bundle = small_bundle(folder)
    labels, table = labelled(200)
    rng = np.random.default_rng(0)
    some = encoder_vectors(load_bundle(bundle), np.full((1, 96, 120, 96), 30, np.int16))
    vectors = {
        k: rng.standard_normal((len(table), v.shape[1]), np.float32) for k, v in some.items()
    }
    table = replace(table, vectors=vectors, bundle_hash=load_bundle(bundle).hash)
    run_probe(table, labels, PRESETS["small"], folder / "task-s", ProbeConfig())
    volume, preset = scan(40), load_preset("demo", [])
    header = rendered_series(preset, plan_studies(preset)[0])[0].header
    for n in (1, 2):
        (folder / f"series-{n}").mkdir()
        for i, data in enumerate(encode_series(volume.hu, volume.affine_zyx, header)):
            (folder / f"series-{n}" / f"{i:04d}.dcm").write_bytes(data)
    os.environ["HEADCT_KEY_FILE"] = str(folder / "key")
    command = [str(Path(sys.executable).with_name("headct")), "predict", str(folder / "series-1")]
    command += ["--task", str(folder / "task-s"), "--bundle", str(bundle), "--json"]
    start, before = time.perf_counter(), cpu_of_children()
    subprocess.run(command, check=True, capture_output=True)
    cold, cold_cpu = time.perf_counter() - start, cpu_of_children() - before
    predictor = load_predictor(folder / "task-s", bundle)
    for n in (1, 2):
        start, before = time.perf_counter(), time.process_time()
        (answer,) = predictor.predict([folder / f"series-{n}"])
        warm, warm_cpu = time.perf_counter() - start, time.process_time() - before
        assert answer.status == "analysed", answer.reason
    figures = {"cold_s": cold, "cold_cpu_s": cold_cpu, "warm_s": warm, "warm_cpu_s": warm_cpu}
    return {"case": "predict"} | {name: round(value, 2) for name, value in figures.items()}


def cpu_of_children() -> float:
    """CPU seconds of processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", choices=("probe", "embed-once", "predict"))
    parser.add_argument("--scans", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines: list[dict[str, Any]] = []
        if args.only in (None, "predict"):
            lines.append(predict(folder))
        if args.only in (None, "probe"):
            lines += probe_and_bootstrap(folder, args.scans)
        if args.only in (None, "embed-once"):
            lines.append(embed_once(folder, args.scans))
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
