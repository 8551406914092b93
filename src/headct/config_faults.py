"""What is wrong with a config, in words: which key, what was given, what is allowed."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MOST_NAMED = 16
"""Keys of a section that a message lists."""
MOST_SHOWN = 60
"""Characters of a value that a message shows."""
WANTED = {
    "int": "is not a whole number",
    "float": "is not a number",
    "finite": "is not a finite number",
    "bool": "is neither true nor false",
    "string": "is not text",
    "path": "is not a path",
    "tuple": "is not a list in [ ]",
    "list": "is not a list in [ ]",
    "dict": "is not a section of keys",
    "model": "is not a section of keys",
}
"""By the first word of pydantic's types `int_parsing`, `tuple_type`, ..."""
RULES = {
    "missing": "is needed, and not given",
    "greater_than": "{given} is not above {gt:g}",
    "greater_than_equal": "{given} is below {ge:g}, the least that is allowed",
    "less_than": "{given} is not below {lt:g}",
    "less_than_equal": "{given} is above {le:g}, the most that is allowed",
    "too_short": "{given} has length {actual_length}; at least {min_length} is wanted",
    "too_long": "{given} has length {actual_length}, not {max_length}",
    "string_pattern_mismatch": "{given} does not match {pattern}",
}
BRANCH = re.compile(r"bool|int|float|str|literal\[.*\]")
"""What pydantic adds to the place of a fault where a key allows several types."""


def in_words(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each key that is at fault."""
    lines: dict[str, list[str]] = {}
    for item in _own(error):
        where, words = _fault(model, item)
        lines.setdefault(".".join(str(part) for part in where), []).append(words)
    return [f"{key}: {', and '.join(words)}".removeprefix(": ") for key, words in lines.items()]


def _own(error: ValidationError) -> list[ErrorDetails]:
    """Its faults, without those that only follow from others of the same list."""
    items = error.errors()
    inner = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    last = {item["loc"][:-1]: item["loc"] for item in items if _is_short_list(item)}
    return [
        item
        for item in items
        if not (item["type"] == "too_short" and item["loc"] in inner)
        and not (_is_short_list(item) and last[item["loc"][:-1]] != item["loc"])
    ]


def _is_short_list(item: ErrorDetails) -> bool:
    return item["type"] == "missing" and bool(item["loc"]) and isinstance(item["loc"][-1], int)


def _fault(model: type[BaseModel], item: ErrorDetails) -> tuple[tuple[int | str, ...], str]:
    where, kind, given = item["loc"], item["type"], _shown(item["input"])
    if kind == "extra_forbidden":
        return where, _unknown(str(where[-1]), known_keys(model, where[:-1]), model)
    if _is_short_list(item):
        return where[:-1], f"{given} has length {len(item['input'])}, not {int(where[-1]) + 1}"
    if where and BRANCH.fullmatch(str(where[-1])):
        where = where[:-1]
    if kind == "literal_error":
        return where, _none_of(item)
    if kind in RULES:
        return where, RULES[kind].format(given=given, **item.get("ctx", {}))
    first, _, rest = kind.partition("_")
    if first in WANTED and rest in ("type", "parsing", "from_float", "number", "attributes_type"):
        return where, f"{given} {WANTED[first]}" + _keys_to_set(model, where, first)
    return where, item["msg"].removeprefix("Value error, ")


def _unknown(key: str, known: list[str], model: type[BaseModel]) -> str:
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, known, n=1) or elsewhere[:MOST_NAMED]
    if near:
        return f"unknown key; did you mean {' or '.join(near)}?"
    return "unknown key" + _listed(known, "; there are: ")


def _none_of(item: ErrorDetails) -> str:
    expected = item["ctx"]["expected"]
    near = difflib.get_close_matches(str(item["input"]), re.findall("'([^']*)'", expected), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_shown(item['input'])} is not {expected}{hint}"


def _keys_to_set(model: type[BaseModel], where: tuple[int | str, ...], kind: str) -> str:
    return _listed(known_keys(model, where), ": ") if kind == "model" else ""


def _listed(known: list[str], before: str) -> str:
    return before + ", ".join(known) if 0 < len(known) <= MOST_NAMED else ""


def _shown(value: Any) -> str:
    """A value about as TOML has it."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def known_keys(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at a place; none where there is no section."""
    for part in where:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _paths(model: type[BaseModel]) -> Iterator[str]:
    """Every key of a config and of its sections, as in --set."""
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{path}" for path in _paths(field.annotation))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)
    return None
