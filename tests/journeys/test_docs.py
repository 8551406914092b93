"""Docs tell the truth: commands in docs/start.md run, all others at least parse.

A fenced block that opens with ```bash runs, in order, in one empty folder a page. A block that
opens with ```bash not-run: REASON does not, but each headct line in it must name a real verb with
real options.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from headct.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(bash|console|sh)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_CI_ITSELF = {"make demo", "make test", "make env"}


def blocks(page):
    """(info after the language, lines) of every shell block."""
    for match in FENCE.finditer(page.read_text()):
        joined = match[3].replace("\\\n", " ")
        lines = [line.strip() for line in joined.splitlines()]
        yield match[2].strip(), [line for line in lines if line and not line.startswith("#")]


def headct_lines():
    for page in PAGES:
        for _, lines in blocks(page):
            for line in lines:
                if line.startswith("headct "):
                    yield pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:60]}")


def command_of(words):
    """The click command that the words lead to, and the words left for it."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", list(headct_lines()))
def test_headct_commands_in_docs_name_real_verbs_and_options(line):
    words = shlex.split(re.split(r" #|\|", line)[0])[1:]
    command, rest = command_of(words)
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    known |= {"--help", "-h", "--version"}
    used = {word.split("=")[0] for word in rest if word.startswith("-") and len(word) > 1}
    assert command.name != "root", f"no verb in {line!r}"
    assert used <= known, f"{sorted(used - known)} not among the options of {command.name}"


def pages_that_run():
    for page in PAGES:
        runs = [
            line
            for info, lines in blocks(page)
            if not info
            for line in lines
            if line not in IN_CI_ITSELF
        ]
        if runs:
            yield pytest.param(page, id=str(page.relative_to(ROOT)))


def run_script(script, work, keys):
    """Run shell lines in a folder as a user would, with the installed command."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HEADCT_KEY_FILE": str(keys / "key"),
        "OMP_NUM_THREADS": "1",
    }
    work.mkdir(exist_ok=True)
    answer = subprocess.run(
        ["bash", "-c", f"set -e\n{script}"],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.xdist_group("journey")
@pytest.mark.parametrize("page", list(pages_that_run()))
def test_commands_in_docs_run(page, tmp_path):
    lines = [line for info, lines in blocks(page) if not info for line in lines]
    script = "\n".join(line for line in lines if line not in IN_CI_ITSELF)
    run_script(script, tmp_path / "work", tmp_path / "keys")


TOY = {
    "/archive/ct": "archive/dicom",
    "--grid small": "--grid demo || test $? -eq 1",
    "pretrain small": "pretrain demo --set steps=2 --set batch=4",
    "labels.csv": "archive/labels.csv",
    "scan_folder": "one-scan",
    '"c-0123456789abcdef"': "headct.open_store('STORE').scan_ids[0]",
}
"""What stands in the README for a user's own archive -> the same at the size of a test."""


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_the_commands_and_the_python_of_the_readme_run_on_a_toy_archive(tmp_path):
    readme = (ROOT / "README.md").read_text()
    shell = "\n".join(line for info, ls in blocks(ROOT / "README.md") if info for line in ls)
    python = re.search(r"^```python[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    for written, toy in TOY.items():
        assert written in shell + python
        shell, python = shell.replace(written, toy), python.replace(written, toy)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "readme.py").write_text(python)
    make = (
        "headct phantom --preset tiny --out archive --set faults=false\n"
        "first=$(find archive/dicom/hospital-a/ST00001 -type f | head -1)\n"
        'cp -r "$(dirname "$first")" one-scan'
    )
    script = f"{make}\n{shell}\npython readme.py"
    run_script(script, tmp_path / "work", tmp_path / "keys")


def test_every_block_that_does_not_run_says_why():
    for page in PAGES:
        for info, _ in blocks(page):
            assert not info or re.match(r"not-run: \w+", info), f"{page.name}: {info!r}"


def test_the_two_commands_of_the_readme_resolve():
    for target in ("demo", "test"):
        command = ["make", "-n", target]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} -> {target}"
