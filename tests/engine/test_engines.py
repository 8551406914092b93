"""Whatever the engine, the results are those of a loop, in the order of the tasks."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headct.engine.away import Away, Raised, opened
from headct.engine.choice import KINDS, Engine, SlurmOptions, require_kind
from headct.errors import HeadctError, UsageError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="no Ray here: pip install 'headct[cluster]'"
)
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="no submitit here: pip install 'headct[cluster]'",
)
LOCAL = Engine("slurm-local", 2, slurm=SlurmOptions(minutes=2))


def square(n: int) -> int:
    """Later tasks are done first."""
    time.sleep(0.002 * (20 - n))
    return n * n


def deadly(n: int) -> int:
    if n == 3:
        os._exit(7)
    return n


def faulty(n: int) -> int:
    if n == 2:
        raise HeadctError("it cannot be done", remedy="do not", code="no")
    return n


def negative(n: int) -> int:
    return -n


def place(_: int) -> tuple[str, str]:
    import ray

    time.sleep(0.05)
    return ray.get_runtime_context().get_node_id(), os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    nodes.wait_for_nodes()
    yield nodes.address
    nodes.shutdown()


@needs_ray
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore")
def test_ray_on_two_nodes(cluster: str) -> None:
    engine = Engine("ray", ray_address=cluster)
    engine.check()
    assert list(engine.run_in_order(square, range(20))) == [n * n for n in range(20)]
    places = list(engine.run_in_order(place, range(12)))
    assert len({node for node, _ in places}) == 2
    assert {threads for _, threads in places} == {"1"}
    assert list(engine.run_in_order(deadly, range(6), lost=negative)) == [0, 1, 2, -3, 4, 5]
    with pytest.raises(HeadctError, match="cannot be done") as caught:
        list(engine.run_in_order(faulty, range(4)))
    assert (caught.value.code, caught.value.remedy) == ("no", "do not")


@needs_ray
def test_ray_without_a_cluster_is_said() -> None:
    with pytest.raises(HeadctError, match="no Ray cluster") as caught:
        Engine("ray", ray_address="127.0.0.1:1").check()
    assert "ray start" in caught.value.remedy


@needs_submitit
def test_jobs_in_order_a_deadly_task_and_an_error(tmp_path: Path) -> None:
    run = LOCAL.run_in_order
    assert list(run(deadly, range(6), folder=tmp_path, lost=negative)) == [0, 1, 2, -3, 4, 5]
    with pytest.raises(HeadctError, match="cannot be done") as caught:
        list(run(faulty, range(4), folder=tmp_path))
    assert (caught.value.code, caught.value.remedy) == ("no", "do not")


@needs_submitit
def test_a_job_that_cannot_start_is_an_error_not_a_bad_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text("def f(n):\n    return n\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import elsewhere

    with pytest.raises(HeadctError, match="ModuleNotFoundError") as caught:
        list(LOCAL.run_in_order(elsewhere.f, range(2), folder=tmp_path, lost=negative))
    assert caught.value.code == "slurm-job"


def test_jobs_need_slurm_and_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no sbatch"):
        Engine("slurm").check()
    with pytest.raises(UsageError, match="shared disk"):
        Engine("slurm").run_in_order(square, range(3))


def test_names_of_engines() -> None:
    assert [require_kind(name) for name in KINDS] == list(KINDS)
    with pytest.raises(UsageError, match="no engine named") as caught:
        require_kind("hadoop")
    assert "slurm" in caught.value.remedy


def test_another_version_on_a_worker_is_said() -> None:
    result: Any = Away(square, version="0.0.1")(3)
    assert isinstance(result, Raised)
    with pytest.raises(HeadctError, match=r"this is 0\.0\.1"):
        opened(result)
