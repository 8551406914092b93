from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from headct.config import Config, Positive, Range, load_recipe, ranges_rise, to_toml
from headct.errors import UsageError


class Optim(Config):
    peak_lr: Positive = 1e-3
    warmup_fraction: float = 0.1
    betas: tuple[float, float, float] = (0.9, 0.95, 0.99)
    band: Range = (0.1, 0.2)
    kind: Literal["adam", "muon"] = "adam"
    either: bool | Literal["all"] = True


class Recipe(Config):
    steps: int = Field(ge=1, le=1000)
    name: str = "x"
    amp: bool = True
    optim: Optim = Optim()
    layers: tuple[Optim, ...] = Field(default=(Optim(),), min_length=1)
    short: tuple[int, ...] = Field(default=(1,), min_length=1)
    place: Path | None = None


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
    assert "steps: is needed, and not given" in message
    assert "layers.0.warm" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=many", "steps: 'many' is not a whole number"),
        ("steps=2.5", "steps: 2.5 is not a whole number"),
        ("place=3", "place: 3 is not a path"),
        ("steps=-5", "steps: -5 is below 1, the least that is allowed"),
        ("steps=5000", "steps: 5000 is above 1000, the most that is allowed"),
        ("amp=maybe", "amp: 'maybe' is neither true nor false"),
        ("name=3", "name: 3 is not text"),
        ("optim=3", "optim: 3 is not a section of keys: peak_lr, warmup_fraction, betas"),
        ("optim.peak_lr=high", "optim.peak_lr: 'high' is not a number"),
        ("optim.peak_lr=0", "optim.peak_lr: 0 is not above 0"),
        ("optim.peak_lr=nan", "optim.peak_lr: nan is not a finite number"),
        ("optim.betas=0.9", "optim.betas: 0.9 is not a list in [ ]"),
        ("optim.betas=[0.9]", "optim.betas: [0.9] has length 1, not 3"),
        ("optim.betas=[1,2,3,4]", "optim.betas: [1, 2, 3, 4] has length 4, not 3"),
        ("optim.betas=[0.9,'x',1]", "optim.betas.1: 'x' is not a number"),
        ("optim.band=[0.2,0.1]", "optim.band: [0.2, 0.1] is not [smallest, largest]"),
        ("optim.kind=muonn", "optim.kind: 'muonn' is not 'adam' or 'muon'; did you mean muon?"),
        ("optim.either=some", "optim.either: 'some' is neither true nor false, and 'some' is not"),
        ("peak_lr=1", "peak_lr: unknown key; did you mean optim.peak_lr?"),
        ("optim.peak_lrr=1", "optim.peak_lrr: unknown key; did you mean peak_lr?"),
    ],
)
def test_a_fault_says_key_what_was_given_and_what_is_allowed(tmp_path, override, words):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "steps = 3", override)
    assert "has 1 fault:" in str(caught.value)
    assert words in str(caught.value)


def test_ranges_anywhere_in_a_section_must_rise():
    class Views(Config):
        optim: Optim = Optim()
        sizes: tuple[float, float] = (1, 2)

    assert ranges_rise(Views()) == Views()
    with pytest.raises(ValueError, match=r"sizes \[3.0, 2.0\] is not"):
        ranges_rise(Views(sizes=(3, 2)))


def test_a_list_of_faulty_items_is_not_called_empty(tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "steps = 3\n[[layers]]\npeak_lr = 'high'\n", "short=[]")
    assert "layers.0.peak_lr" in str(caught.value)
    assert "layers:" not in str(caught.value)
    assert "short: [] has length 0; at least 1 is wanted" in str(caught.value)


def test_broken_toml_missing_file_and_odd_overrides(tmp_path):
    with pytest.raises(UsageError, match="not valid TOML"):
        load(tmp_path, "steps = = 3")
    with pytest.raises(UsageError, match="no recipe file"):
        load_recipe(tmp_path / "absent.toml", Recipe)
    with pytest.raises(UsageError, match="key=value"):
        load(tmp_path, "steps = 3", "steps")
    with pytest.raises(UsageError, match="name= has no value"):
        load(tmp_path, "steps = 3", "name=")
    with pytest.raises(UsageError, match="steps= has no value") as caught:
        load(tmp_path, "steps = 3", "steps=")
    assert caught.value.remedy == "e.g. --set steps=3"
    with pytest.raises(UsageError, match="not a section"):
        load(tmp_path, "steps = 3", "steps.a=1")


def test_the_dumped_config_loads_to_an_equal_one(tmp_path):
    recipe = load(tmp_path, "steps = 3", "optim.peak_lr=0.25")
    assert tomllib.loads(to_toml(recipe))["optim"]["peak_lr"] == 0.25
    assert load(tmp_path, to_toml(recipe)) == recipe


def test_a_config_is_frozen(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, "steps = 3").steps = 4
