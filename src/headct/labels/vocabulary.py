"""The shared names of findings, what data sets call them, and which one implies which."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources

from headct.config import Config, check
from headct.errors import LabelError

Value = int | None
"""1 present, 0 absent, None unknown."""


class Term(Config):
    """One finding of the vocabulary."""

    meaning: str
    """What it stands for, in words."""
    aliases: tuple[str, ...] = ()
    """Names in data sets; compared without case, spaces and signs."""
    parent: str | None = None
    """Finding that is present wherever this one is."""
    swaps_with: str | None = None
    """Finding that takes its place in a mirrored image."""


@cache
def vocabulary() -> dict[str, Term]:
    """All findings by their shared name, in the order of tables."""
    text = resources.files("headct.labels").joinpath("vocabulary.toml").read_text("utf-8")
    return {
        name: check(values, Term, f"vocabulary: {name}")
        for name, values in tomllib.loads(text).items()
    }


@cache
def _names() -> dict[str, str]:
    """Shared name by plain spelling of each name and alias."""
    return {
        _plain(spelling): name
        for name, term in vocabulary().items()
        for spelling in (name, *term.aliases)
    }


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def find_name(column: str) -> str | None:
    """The shared name of a data set's column; None where the vocabulary does not know it."""
    return _names().get(_plain(column))


def shared_name(column: str) -> str:
    """The shared name of a data set's column.

    Raises:
        LabelError: the vocabulary does not know it; the nearest name is given.
    """
    name = find_name(column)
    if name is None:
        near = difflib.get_close_matches(_plain(column), _names(), n=1)
        hint = f"did you mean {_names()[near[0]]}? " if near else ""
        raise LabelError(
            f"{column!r} is not in the vocabulary of findings",
            remedy=f"{hint}`headct labels vocabulary` lists it",
        )
    return name


def in_order(names: Iterable[str]) -> list[str]:
    """Findings in the order of the vocabulary, others after them by name."""
    places = {name: place for place, name in enumerate(vocabulary())}
    return sorted(set(names), key=lambda name: (places.get(name, len(places)), name))


def implied(values: Mapping[str, Value]) -> dict[str, Value]:
    """The labels of a scan with what they imply, among the findings that the scan has.

    A present finding makes its parent present; an absent parent makes unknown findings absent.
    """
    result = dict(values)
    for name, value in values.items():
        for parent in _parents(name):
            if value == 1 and parent in result:
                result[parent] = 1
            elif value is None and values.get(parent) == 0:
                result[name] = 0
    return result


def contradicts(values: Mapping[str, Value]) -> bool:
    """Whether a finding is present whose parent is absent."""
    return any(
        value == 1 and any(values.get(parent) == 0 for parent in _parents(name))
        for name, value in values.items()
    )


def _parents(name: str) -> Iterator[str]:
    term = vocabulary().get(name)
    while term is not None and term.parent is not None:
        yield term.parent
        term = vocabulary().get(term.parent)
