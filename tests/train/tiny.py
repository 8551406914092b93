"""A store and a recipe small enough to train in a second, and a run of the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from headct.config import check, to_toml
from headct.store.writer import StoreWriter
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import Preprocessing

GRID = Preprocessing(shape_zyx=(16, 16, 16), spacing_mm_zyx=(8.0, 8.0, 8.0))
N_SCANS = 22

RECIPE = {
    "name": "tiny",
    "seed": 3,
    "steps": 12,
    "batch": 4,
    "precision": "fp32",
    "encoder": {
        "width": 24,
        "depth": 2,
        "heads": 2,
        "patch_voxels_zyx": (4, 4, 4),
        "spacing_mm_zyx": GRID.spacing_mm_zyx,
        "n_tokens": 20,
        "n_registers": 1,
        "drop_path": 0.1,
    },
    "views": {"crop": {"n_global": 2, "n_local": 2, "local_mm": 64.0}},
    "objective": {
        "decoder": {"width": 24, "heads": 2, "depth": 1},
        "lat": {"weight": 0.3, "ramp": (0.2, 0.5)},
        "cls": {"weight": 0.2, "ramp": (0.2, 0.5), "hidden": 32, "out": 16},
    },
    "record": {"metrics_every": 1, "checkpoint_every": 3, "keep_checkpoints": 2, "panel_every": 6},
}


def recipe(**changes) -> PretrainRecipe:
    return check(RECIPE | changes, PretrainRecipe, "tiny")


def write_recipe(path: Path, **changes) -> Path:
    path.write_text(to_toml(recipe(**changes)))
    return path


def make_store(path: Path, n: int = N_SCANS, grid: Preprocessing = GRID, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    axes = (np.linspace(-1, 1, size) for size in grid.shape_zyx)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    with StoreWriter(path, grid, shard_scans=4) as writer:
        for i in range(n):
            radius = rng.uniform(0.6, 0.9, 3)
            inside = (z / radius[0]) ** 2 + (y / radius[1]) ** 2 + (x / radius[2]) ** 2 < 1
            hu = np.where(inside, rng.normal(30, 8, inside.shape), -1000).astype(np.int16)
            names = {f"{what}_id": f"{what[0]}-{i:016x}" for what in ("patient", "study", "series")}
            row = {"scan_id": f"c-{i:016x}", "status": "accepted", "flags": [], **names}
            writer.append(hu, row | {"affine_zyx": np.eye(4).ravel().tolist()})
    return path


def command(*arguments: str | Path) -> list[str]:
    """The installed `headct pretrain`, with one thread."""
    headct = str(Path(sys.executable).with_name("headct"))
    return [headct, "pretrain", *map(str, arguments), "--threads", "1"]


def torchrun(*arguments: str | Path, ranks: int = 2, restarts: int = 0) -> list[str]:
    """The same on several ranks of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    start += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    return [*start, *command(*arguments)]


RANKS_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run_ranks(*arguments: str | Path, **options: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(*arguments, **options),
        capture_output=True,
        text=True,
        timeout=300,
        env=RANKS_ENVIRONMENT,
    )


def ranks_of(agent: int) -> list[int]:
    """Process ids of the ranks that a torchrun started, by rank."""
    children = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat, environ = (Path("/proc", entry, name).read_text() for name in ("stat", "environ"))
            parent = int(stat.rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == agent:
            children += [(v, int(entry)) for v in environ.split("\0") if v.startswith("RANK=")]
    return [pid for _, pid in sorted(children)]


def headct_pretrain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)
