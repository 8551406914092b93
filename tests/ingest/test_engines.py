"""Jobs and a Ray cluster of two nodes give the very store that processes of this machine give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from headct.engine.choice import Engine, SlurmOptions
from headct.errors import HeadctError, UsageError
from headct.ingest.pipeline import ingest
from headct.store.store import open_store
from headct.volume.preprocessing import PRESETS

DEMO = PRESETS["demo"]


@pytest.fixture(scope="module")
def here(archive: Path, key_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("here") / "store"
    ingest([archive], out, DEMO, jobs=0, key_file=key_file)
    return out


def require_same(one: Path, other: Path) -> None:
    a, b = open_store(one), open_store(other)
    assert len(a) > 0
    assert a.manifest.equals(b.manifest)
    np.testing.assert_array_equal(a.read_hu(range(len(a))), b.read_hu(range(len(b))))
    assert (one / "items.jsonl").read_text() == (other / "items.jsonl").read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)
def test_jobs_give_the_same_store(here, archive, key_file, tmp_path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    engine = Engine("slurm-local", 2, slurm=SlurmOptions(minutes=5, chunk=4))
    ingest([archive], tmp_path / "store", DEMO, engine=engine, key_file=key_file, work=work)
    require_same(tmp_path / "store", here)
    assert not list(work.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_of_ray_give_the_same_store(here, archive, key_file, tmp_path) -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    try:
        nodes.wait_for_nodes()
        engine = Engine("ray", ray_address=nodes.address)
        ingest([archive], tmp_path / "store", DEMO, engine=engine, key_file=key_file)
    finally:
        nodes.shutdown()
    require_same(tmp_path / "store", here)


def test_another_key_on_a_worker_is_an_error_not_other_names(here, key_file, tmp_path) -> None:
    from headct.dicom.header import FileOutcome
    from headct.dicom.reasons import Reason
    from headct.ingest.criteria import Criteria
    from headct.ingest.keyed import Keyed
    from headct.ingest.series import Settings, Task

    other = tmp_path / "key"
    other.write_bytes(b"0" * 64)
    other.chmod(0o600)
    keyed = Keyed(Settings(DEMO, Criteria(), key_file.read_bytes()), other)
    assert key_file.read_bytes().strip() not in repr(keyed.__dict__).encode()
    with pytest.raises(HeadctError, match="key of the pseudonyms"):
        keyed(Task("x", FileOutcome(tmp_path, Reason.EMPTY_FILE), 1))


def test_jobs_on_other_machines_want_a_shared_folder(archive, key_file, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UsageError, match="all machines see") as caught:
        ingest([archive], tmp_path / "store", DEMO, engine=Engine("slurm"), key_file=key_file)
    assert "--work" in caught.value.remedy
