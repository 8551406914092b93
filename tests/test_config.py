from __future__ import annotations

import tomllib

import pytest
from pydantic import Field

from headct.config import Config, load_recipe, to_toml
from headct.errors import UsageError


class Optim(Config):
    peak_lr: float = 1e-3
    warmup_fraction: float = 0.1


class Recipe(Config):
    steps: int
    name: str = "x"
    amp: bool = True
    optim: Optim = Optim()
    layers: tuple[Optim, ...] = Field(default=(Optim(),), min_length=1)
    short: tuple[int, ...] = Field(default=(1,), min_length=1)


def load(tmp_path, text, *overrides):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return load_recipe(path, Recipe, overrides)


def test_overrides_reach_nested_keys_and_plain_text(tmp_path):
    recipe = load(tmp_path, "steps = 3", "optim.peak_lr=0.5", "name=demo run", "amp=false")
    assert (recipe.optim.peak_lr, recipe.name, recipe.amp) == (0.5, "demo run", False)


def test_zero_can_be_set_from_the_command_line(tmp_path):
    assert load(tmp_path, "steps = 3", "optim.warmup_fraction=0").optim.warmup_fraction == 0


def test_all_faults_are_listed_at_once_with_the_nearest_key(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "step = 3\n[optim]\npeak_lrr = 1\n[[layers]]\nwarm = 2\n")
    message = str(caught.value)
    assert "did you mean steps?" in message
    assert "optim.peak_lrr: unknown key; did you mean peak_lr?" in message
    assert "steps: Field required" in message
    assert "layers.0.warm" in message


def test_a_list_of_faulty_items_is_not_called_empty(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "steps = 3\n[[layers]]\npeak_lr = 'high'\n", "short=[]")
    assert "layers.0.peak_lr" in str(caught.value)
    assert "layers:" not in str(caught.value)
    assert "short: Tuple should have at least 1 item" in str(caught.value)


def test_broken_toml_missing_file_and_odd_overrides(tmp_path):
    with pytest.raises(UsageError, match="not valid TOML"):
        load(tmp_path, "steps = = 3")
    with pytest.raises(UsageError, match="no recipe file"):
        load_recipe(tmp_path / "absent.toml", Recipe)
    with pytest.raises(UsageError, match="key=value"):
        load(tmp_path, "steps = 3", "steps")
    with pytest.raises(UsageError, match="not a section"):
        load(tmp_path, "steps = 3", "steps.a=1")


def test_the_dumped_config_loads_to_an_equal_one(tmp_path):
    recipe = load(tmp_path, "steps = 3", "optim.peak_lr=0.25")
    assert tomllib.loads(to_toml(recipe))["optim"]["peak_lr"] == 0.25
    assert load(tmp_path, to_toml(recipe)) == recipe


def test_a_config_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, "steps = 3").steps = 4
