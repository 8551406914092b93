"""TOML recipes -> frozen, strict pydantic models; `--set a.b=3`; the resolved config as TOML."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from headct.errors import UsageError


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)
MOST_NAMED = 16
"""Keys of a section that a message lists."""


def load_recipe(
    recipe: str | Path,
    model: type[C],
    overrides: Sequence[str] = (),
    *,
    builtin: str = "headct.recipes",
) -> C:
    """Read a recipe, apply `key=value` overrides and check everything at once.

    Args:
        recipe: path of a TOML file, or the name of a recipe that comes with headct.
        model: the config class that the recipe fills.
        overrides: `a.b=3` pairs; the value is TOML, and text needs no quotes.
        builtin: package whose `*.toml` files are the named recipes.

    Raises:
        UsageError: no such recipe, broken TOML, unknown keys (with the nearest known one) or bad
            values; all faults are listed at once.
    """
    name, text = _read(recipe, builtin)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not valid TOML: {error}", remedy="mend that line") from error
    apply_overrides(values, overrides)
    return check(values, model, name)


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `a.b=3` pairs in plain values, in place; the value is TOML, and text needs no quotes.

    Raises:
        UsageError: no key=value pair, or a section that is a value.
    """
    for override in overrides:
        _set(values, override)


def check(values: dict[str, Any], model: type[C], name: str) -> C:
    """Build a config from plain values; every fault becomes one line of a UsageError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(model, item["loc"], item["msg"], item["type"]) for item in _own(error)]
        raise UsageError(
            f"{name} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            remedy="correct these keys in the recipe or in --set",
        ) from error


def _own(error: ValidationError) -> list[ErrorDetails]:
    """Its faults, without the lists that are short only for want of items that are faulty."""
    items = error.errors()
    inner = {item["loc"][:n] for item in items for n in range(len(item["loc"]))}
    return [item for item in items if item["type"] != "too_short" or item["loc"] not in inner]


def to_toml(config: Config) -> str:
    """The resolved config as TOML; loading it again gives an equal config. None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def builtin_names(builtin: str = "headct.recipes") -> list[str]:
    """Names of the recipes that come with headct."""
    files = resources.files(builtin).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def _read(recipe: str | Path, builtin: str) -> tuple[str, str]:
    path = Path(recipe)
    if path.is_file():
        try:
            return path.name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path.name} is not a text file", remedy="give a TOML file"
            ) from error
    names = builtin_names(builtin)
    if str(recipe) in names:
        return str(recipe), resources.files(builtin).joinpath(f"{recipe}.toml").read_text("utf-8")
    raise UsageError(
        f"no recipe file or built-in recipe named {path.name!r}",
        remedy=f"give a TOML file, or one of: {', '.join(names)}",
    )


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set wants key=value, not {override!r}", remedy="e.g. --set steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            whole = f"{{preset={values!r}, {last}={text.strip()}}}"
            remedy = f'give all of it: --set "{parent}={whole}"'
            raise UsageError(
                f"--set {key}: {parent} is a value, not a section",
                remedy=remedy if isinstance(values, str) else f"leave out what follows {parent}",
            )
    values[last] = value


def _fault(model: type[Config], where: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in where)
    if kind != "extra_forbidden":
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    known = _known_keys(model, where[:-1])
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    if near:
        return f"{key}: unknown key; did you mean {near[0]}?"
    few = 0 < len(known) <= MOST_NAMED
    return f"{key}: unknown key" + (f"; there are: {', '.join(known)}" if few else "")


def _known_keys(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    for part in where:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)
    return None
