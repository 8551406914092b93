"""Small checks of truthfulness: the public door, import cost, packages that must not be there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

import headct

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "headct").rglob("*.py"))


@pytest.mark.parametrize("name", headct.__all__)
def test_every_exported_name_exists_and_has_a_docstring(name):
    thing = getattr(headct, name)
    assert isinstance(thing, str) or thing.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        _ = headct.nothing_of_the_kind


def test_help_does_not_load_the_heavy_packages():
    code = (
        "import sys; import headct.cli.app; "
        "heavy = {'torch', 'sklearn', 'SimpleITK', 'matplotlib', 'scipy', 'pyarrow', 'zarr',"
        " 'tensorstore', 'highdicom', 'pydicom'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_packages_that_must_not_be_there():
    assert util.find_spec("torchvision") is None
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    assert not installed & {"pylibjpeg-libjpeg", "timm"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_pickle_and_a_module_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "say in a sentence what the file is for"
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "joblib", "dill", "cloudpickle"}


def test_no_second_drawer_for_odds_and_ends():
    names = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
    assert not names & {"utils", "util", "misc", "helpers", "common", "types", "registry"}


def test_the_lock_lists_no_gpu_packages():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert "torch" in names
    assert not {n for n in names if n.startswith("nvidia") or n in {"triton", "torchvision"}}


def test_the_cli_runs_without_a_terminal_and_in_ascii():
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name("headct")), "--help"]
    answer = subprocess.run(command, capture_output=True, env=env, check=False)
    assert answer.returncode == 0, answer.stderr
