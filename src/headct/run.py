"""The record of one execution: run.json, config.toml, items.jsonl, metrics.jsonl."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from headct import __version__
from headct.atomic import write_json, write_text
from headct.config import Config, to_toml

RECORDED_PACKAGES = (
    "numpy",
    "pydicom",
    "zarr",
    "tensorstore",
    "torch",
    "scikit-learn",
)


def write_run_record(folder: Path, config: Config | None, *, seed: int | None, verb: str) -> None:
    """Write `config.toml` (where there is a config) and `run.json` into a folder.

    run.json holds the verb and its options (never a path: folder names of an archive can name
    people), versions, seed, git commit and time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        write_text(folder / "config.toml", to_toml(config))
    record = {
        "verb": verb,
        "options": without_paths(sys.argv[2:]) if len(sys.argv) > 1 and sys.argv[1] == verb else [],
        "seed": seed,
        "headct": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "run.json", record)


def without_paths(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with everything that is or looks like a path replaced by PATH."""
    return [_without_path(argument) for argument in arguments]


def _without_path(argument: str) -> str:
    option, equals, _ = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}=PATH"
    return "PATH" if _is_path(argument) else argument


def _is_path(argument: str) -> bool:
    return os.sep in argument or "\\" in argument or os.path.exists(argument)


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None for an installed wheel."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, durable: bool = False) -> None:
    """Append rows as JSON lines in one write; `durable` also flushes them to the disk."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        if durable:
            os.fsync(handle.fileno())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line cut off by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
