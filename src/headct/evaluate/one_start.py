"""Tasks that are averaged as seeds of one method start from one encoder, or a person said so."""

from __future__ import annotations

from collections.abc import Sequence

from headct.adapt.task import TaskInfo
from headct.errors import MismatchError


def require_one_start(infos: Sequence[TaskInfo]) -> None:
    """Tasks under the name of their verb start from one encoder; under a given name from any.

    The encoder that a fine-tuning ends with differs by seed; the one it starts from does not.
    Seeds of a pretraining are averaged where their tasks were given one name.

    Raises:
        MismatchError: two encoders under one default name.
    """
    starts: dict[str, tuple[str, str]] = {}
    for info in infos:
        start = (info.source, info.bundle_hash)
        if not info.is_named and starts.setdefault(info.method, start) != start:
            raise MismatchError(
                f"tasks named {info.method!r} start from different encoders"
                f" ({starts[info.method][1] or 'none'}, {info.bundle_hash or 'none'})",
                remedy="make them again with --name: a name per method; tasks of one name are"
                " averaged as its seeds",
            )
