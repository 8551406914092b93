"""TOML recipes -> frozen, strict pydantic models; `--set a.b=3`; the resolved config as TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headct.config_faults import in_words
from headct.errors import UsageError


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def rises(pair: tuple[float, float]) -> tuple[float, float]:
    """The pair; ValueError where it is not (smallest, largest)."""
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} is not [smallest, largest]")
    return pair


Range = Annotated[tuple[NotNegative, NotNegative], AfterValidator(rises)]
"""Smallest and largest."""


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
        faults = in_words(model, error)
        raise UsageError(
            f"{name} has {len(faults)} fault{'s' if len(faults) > 1 else ''}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            remedy="correct these keys in the recipe or in --set",
        ) from error


def ranges_rise(config: C) -> C:
    """The config; ValueError where a pair of numbers in it is not (smallest, largest)."""
    for key, value in flat(config.model_dump()):
        if _is_pair(value) and value[0] > value[1]:
            raise ValueError(f"{key} {list(value)} is not [smallest, largest]")
    return config


def _is_pair(value: Any) -> bool:
    is_two = isinstance(value, tuple) and len(value) == 2
    return is_two and all(isinstance(v, int | float) for v in value)


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Keys as in --set, with their values."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        path = f"{prefix}{key}"
        pairs += flat(value, f"{path}.") if isinstance(value, dict) else [(path, value)]
    return pairs


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
        return f"recipe {recipe}", resources.files(builtin).joinpath(f"{recipe}.toml").read_text(
            "utf-8"
        )
    raise UsageError(
        f"no recipe file or built-in recipe named {path.name!r}",
        remedy=f"give a TOML file, or one of: {', '.join(names)}",
    )


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set wants key=value, not {override!r}", remedy="e.g. --set seed=1")
    if not text.strip():
        raise UsageError(f"--set {key.strip()}= has no value", remedy=_example(values, key.strip()))
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if isinstance(inner, str) and key.strip() == f"{parent}.preset":
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            shown = repr(value) if isinstance(value, str) else text.strip()
            whole = f"{{preset={inner!r}, {last}={shown}}}"
            remedy = f'give all of it: --set "{parent}={whole}"'
            raise UsageError(
                f"--set {key}: {parent} is a value, not a section",
                remedy=remedy if isinstance(inner, str) else f"leave out what follows {parent}",
            )
        values = inner
    values[last] = value


def _example(values: dict[str, Any], key: str) -> str:
    """A setting like what the recipe has."""
    now: Any = dict(flat(values)).get(key)
    if isinstance(now, int | float | list):
        return f"e.g. --set {key}={json.dumps(now)}"
    return f"give a value after =; --set {key}='\"\"' is empty text"
