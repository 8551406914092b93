import re
from types import SimpleNamespace

import pytest
import torch

from headct.config import builtin_names, load_recipe, to_toml
from headct.errors import UsageError
from headct.model.architecture import ENCODERS
from headct.objective.joint import JointObjective
from headct.train.feed import view_maker
from headct.train.recipe import PretrainRecipe
from headct.volume.preprocessing import PRESETS

from .tiny import recipe

GRIDS = {
    "demo": "demo",
    "small": "small",
    "base": "base",
    "large": "base",
    "dino": "demo",
    "mae": "demo",
    "mae-small": "small",
    "joint": "demo",
}
TERMS = {"dino": {"cls"}, "mae": {"mae"}, "mae-small": {"mae"}, "joint": {"mae", "lat", "cls"}}
FMCT = ["fmct-dino", "fmct-mae"]


def test_there_are_no_recipes_but_these():
    assert builtin_names() == sorted([*GRIDS, *FMCT])


@pytest.mark.parametrize("name", GRIDS)
def test_every_recipe_fits_the_grid_it_says(name):
    loaded = load_recipe(name, PretrainRecipe)
    assert loaded.name == name
    maker = view_maker(loaded, SimpleNamespace(preprocessing=PRESETS[GRIDS[name]]))
    assert all(edges for edges in maker.global_edges)
    with torch.device("meta"):
        objective = JointObjective(loaded.objective, loaded.encoder)
    terms = TERMS.get(name, TERMS["joint"])
    assert (objective.teacher is not None) is bool(terms & {"lat", "cls"})
    assert (objective.decoder is not None) is bool(terms & {"mae", "lat"})
    assert (objective.distillation is not None) is ("cls" in terms)
    assert (objective.anchor is not None) is (name == "large")


@pytest.mark.parametrize("name", FMCT)
def test_the_recipes_of_fm_ct_are_as_published(name):
    loaded = load_recipe(name, PretrainRecipe)
    encoder, objective, crop = loaded.encoder, loaded.objective, loaded.views.crop
    maker = view_maker(loaded, SimpleNamespace(preprocessing=PRESETS["fmct-hu"]))
    assert (encoder.width, encoder.depth, encoder.heads) == (768, 12, 12)
    assert encoder.patch_voxels_zyx == (12, 12, 12)
    assert encoder.spacing_mm_zyx == PRESETS["fmct-hu"].spacing_mm_zyx
    assert [w.name for w in encoder.windows] == ["brain", "blood", "bone"]
    assert encoder.n_tokens == maker.n_patches == 512
    assert maker.global_edges == [[96]] * 3
    assert maker.local_shape == (96, 96, 96)
    with torch.device("meta"):
        built = JointObjective(objective, encoder)
    if name == "fmct-dino":
        assert (crop.n_global, crop.n_local) == (2, 2)
        assert built.distillation.student.prototypes.shape == (65_536, 256)
        assert built.decoder is None
        momentum = [loaded.optim.schedule(1001)(step)["momentum"] for step in (0, 500, 1000)]
        assert momentum == pytest.approx([0.996, 0.998, 1.0])
    else:
        assert (objective.decoder.width, objective.decoder.depth) == (768, 8)
        assert loaded.views.mask.ratio == (0.75, 0.75)
        assert built.teacher is None


@pytest.mark.parametrize("name", [*GRIDS, *FMCT])
def test_the_resolved_recipe_says_the_same(name, tmp_path):
    loaded = load_recipe(name, PretrainRecipe)
    (tmp_path / "config.toml").write_text(to_toml(loaded))
    again = load_recipe(tmp_path / "config.toml", PretrainRecipe)
    assert again == loaded
    assert again.hash == loaded.hash
    assert not again.differences(loaded)


def test_a_preset_encoder_can_be_changed():
    loaded = load_recipe("demo", PretrainRecipe, ["encoder={preset = 'demo', depth = 2}"])
    assert loaded.encoder == ENCODERS["demo"].model_copy(update={"depth": 2})


def test_another_preset_is_named_with_or_without_its_key():
    for setting in ("encoder=small", "encoder.preset=small"):
        assert load_recipe("demo", PretrainRecipe, [setting]).encoder == ENCODERS["small"]


def test_a_key_of_a_preset_encoder_comes_with_a_remedy_that_works():
    with pytest.raises(UsageError, match="not a section") as error:
        load_recipe("demo", PretrainRecipe, ["encoder.attention=windowed"])
    assert error.value.remedy.endswith("""--set "encoder={preset='demo', attention='windowed'}\"""")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("encoder=demoo", "no encoder preset 'demoo'"),
        ("encoder.preset=demoo", "fmct; did you mean demo?"),
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("views.crop.n_globals=1", "did you mean n_global?"),
        ("steps=0", "steps"),
        ("encoder={preset='demo', patch_voxels_zyx=[0, 8, 8]}", "patch_voxels_zyx.0: 0 is below 1"),
        ("encoder={preset='demo', spacing_mm_zyx=[-1, 1, 1]}", "spacing_mm_zyx.0: -1 is not above"),
        ("encoder={preset='demo', rope_periods_mm=[0, 10]}", "rope_periods_mm.0: 0 is not above 0"),
        ("encoder={preset='demo', rope_periods_mm=[90, 10]}", "is not [smallest, largest]"),
        ("encoder={preset='demo', rope_jitter=[0, 1]}", "rope_jitter.0: 0 is below 1"),
        (
            "encoder={preset='demo', windows=[{name='a', level_hu=40, width_hu=0}]}",
            "windows.0.width_hu: 0 is not above 0",
        ),
        ("views.augment.kernel.sigma_mm=[0, 1]", "kernel.sigma_mm.0: 0 is not above 0"),
        ("views.augment.slice_thickness.thickness_mm=[-2, 3]", "thickness_mm.0: -2 is below 0"),
        ("views.augment.metal.n_rays=[0, 3]", "metal.n_rays.0: 0 is below 1"),
        ("views.augment.motion_ghost.weight=[0.1, 2]", "weight.1: 2 is above 1"),
        ("views.augment.noise.probability=2", "noise.probability"),
        ("objective.cls={weight=0, objective='sinkhorn'}", "prototypes without a CLS term"),
        ("objective.cls={weight=0, sinkhorn={n_prototypes=9}}", "prototypes without a CLS term"),
        ("objective.cls={weight=0, sinkhorn={n_prototypes=1024}}", "prototypes without a CLS term"),
        ("objective.cls.sinkhorn.n_prototypes=1024", "never reads sinkhorn.n_prototypes"),
        ("objective.cls.sinkhorn.n_prototypes=64", "never reads sinkhorn.n_prototypes"),
        ("objective.cls.centring.koleo=0.1", "never reads centring.koleo"),
        (
            "objective.cls={objective='sinkhorn', coding_rate={gamma=0.1}}",
            "never reads coding_rate.gamma: set objective.cls.objective=coding-rate",
        ),
        ("views.crop={n_global=1, n_local=0}", "there is one"),
        ("encoder={preset='demo', n_tokens=1}", "raise encoder.n_tokens"),
        ("batch=1", "batch=1 with accumulate=1 gives it one: raise batch"),
        ("accumulate=16", "batch=16 with accumulate=16 gives it one: raise batch, lower"),
        ("views.mask.ratio=[0, 0]", "views.mask.ratio can be 0"),
        ("views.mask.ratio=[0.8, 0.5]", "smallest <= largest"),
        ("views.mask.ratio=[0.5, 1.1]", "smallest <= largest"),
        ("views.crop.stretch=true", "no mm for rotary positions"),
        ("encoder={preset='demo', position_grid_zyx=[6, 8, 6]}", "for one grid"),
    ],
)
def test_faults_are_named(setting, words):
    with pytest.raises(UsageError) as error:
        load_recipe("demo", PretrainRecipe, [setting])
    assert words in error.value.message


def test_all_that_is_wrong_without_a_cls_term_is_said():
    with pytest.raises(UsageError) as error:
        load_recipe("dino", PretrainRecipe, ["objective.cls.weight=0"])
    assert "nothing to learn" in error.value.message
    assert "prototypes without a CLS term" in error.value.message


def test_a_section_that_is_not_read_is_dropped_as_the_message_says():
    with pytest.raises(UsageError) as error:
        load_recipe("base", PretrainRecipe, ["objective.cls.objective=coding-rate"])
    settings = re.findall(r'--set "([^"]*)"', error.value.message)
    changed = load_recipe(
        "base", PretrainRecipe, ["objective.cls.objective=coding-rate", *settings]
    )
    assert changed.objective.cls.objective == "coding-rate"
    assert changed.objective.cls.weight == 0.05
    read = load_recipe(
        "demo",
        PretrainRecipe,
        ["objective.cls.sinkhorn.n_prototypes=64", "objective.cls.objective=sinkhorn"],
    )
    assert read.objective.cls.prototypes.n_prototypes == 64


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.cls.objective=sinkhorn"],
        ["objective.cls={weight=0}"],
        ["batch=2"],
    ],
)
def test_one_scan_at_a_time_is_refused_for_the_coding_rate_alone(settings):
    assert load_recipe("demo", PretrainRecipe, ["batch=1", *settings]).steps == 260


def test_one_patch_is_enough_where_nothing_is_masked():
    settings = ["encoder={preset='demo', n_tokens=1}"]
    assert load_recipe("dino", PretrainRecipe, settings).encoder.n_tokens == 1


def test_the_hash_leaves_out_what_changes_nothing():
    base = recipe()
    assert base.hash == recipe(record={"checkpoint_every": 7}, name="other").hash
    assert base.hash != recipe(seed=4).hash
    assert base.differences(recipe(seed=4, optim={"lr": 0.1})) == ["optim.lr", "seed"]


def test_a_key_within_a_named_preset_says_how_to_write_it():
    with pytest.raises(UsageError) as error:
        load_recipe("demo", PretrainRecipe, ("encoder.n_tokens=100",), builtin="headct.recipes")
    setting = error.value.remedy.partition("--set ")[2].strip('"')
    changed = load_recipe("demo", PretrainRecipe, (setting,), builtin="headct.recipes")
    assert changed.encoder.n_tokens == 100
