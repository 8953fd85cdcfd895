"""The default arms are overrides of the recipe's own keys, and the block refuses what is no arm."""

import pytest
from test_cli import refused
from tiny_run import text_recipe

from hf_sft.comparing.arms import DEFAULTS, overrides_of
from hf_sft.comparing.cells import cells
from hf_sft.comparing.comparison import Comparison
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import apply_override, as_override


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_arm(folder, overrides=(), **changes):
    """Arm -> its recipe for the first seed."""
    recipe = Recipe.load(text_recipe(folder, **changes), overrides)
    seed = (recipe.compare or Comparison()).seeds[0]
    return {cell.arm: cell.recipe for cell in cells(recipe, overrides) if cell.seed == seed}


def test_the_default_arms_are_those_of_the_question(folder):
    freeze = {"type": "train-last", "count": 1}
    arms = by_arm(folder, freeze=freeze, training={"weight_decay": 0.3})
    assert list(arms) == list(DEFAULTS)
    told = {
        name: (
            r.model.pretrained,
            r.freeze.type if r.raw["freeze"] else None,
            [p.type for p in r.penalty],
            r.training["learning_rate"],
            r.training["weight_decay"],
        )
        for name, r in arms.items()
    }
    assert told == {
        "scratch": (False, None, [], 0.01, 0.0),
        "linear-probe": (True, "linear-probe", [], 0.01, 0.0),
        "full": (True, None, [], 0.01, 0.0),
        "weight-decay": (True, None, [], 0.01, 0.3),
        "low-rate": (True, None, [], 0.0025, 0.0),
        "l2-sp": (True, None, ["l2-sp"], 0.01, 0.0),
        "train-last-l2-sp": (True, "train-last", ["l2-sp"], 0.01, 0.0),
        "lp-ft": (True, "lp-ft", [], 0.01, 0.0),
        "lp-ft-l2-sp": (True, "lp-ft", ["l2-sp"], 0.01, 0.0),
    }
    assert arms["train-last-l2-sp"].freeze.count == 1
    assert arms["l2-sp"].penalty == Recipe.load(folder / "recipe.yaml").penalty


def test_an_arm_of_ones_own_changes_what_it_says_and_nothing_else(folder):
    arms = by_arm(folder, compare={"arms": {"mine": {}, "strong": {"penalty.lambda": 0.5}}})
    mine, strong = arms["mine"].raw, arms["strong"].raw
    strong["penalty"].pop("lambda"), mine["penalty"].pop("lambda")
    for raw in (mine, strong):
        raw["training"].pop("output_dir")
    assert mine == strong
    assert mine["task"] == Recipe.load(folder / "recipe.yaml").raw["task"]


def test_all_arms_of_a_seed_and_size_share_draw_and_order(folder):
    compare = {"seeds": [3, 7], "sizes": {"data.per_class": [2, 5]}}
    recipe = Recipe.load(text_recipe(folder, compare=compare))
    every = cells(recipe, ())
    assert len(every) == len({cell.folder for cell in every}) == 9 * 2 * 2
    for cell in every:
        assert cell.recipe.training["seed"] == cell.recipe.data.split_seed == cell.seed
        assert cell.recipe.data.per_class == cell.size
    assert [c.arm for c in every[:9]] == list(DEFAULTS)  # whole pairs first
    assert len({(c.seed, c.size) for c in every[:9]}) == 1


def test_overrides_on_the_command_line_reach_every_arm(folder):
    arms = by_arm(folder, ["training.learning_rate=0.4", "compare.arms=[full, low-rate]"])
    assert {name: r.training["learning_rate"] for name, r in arms.items()} == {
        "full": 0.4,
        "low-rate": 0.1,
    }


WORDS = ["no", "1e-5", "a: [b", 'é"\n#', "null", ""]


@pytest.mark.parametrize(
    "value", [None, True, *WORDS, 1e-5, float("inf"), [1, {"a": ["x, y"]}], {}]
)
def test_an_override_is_read_back_as_it_was(value):
    raw = {}
    apply_override(raw, as_override("a.b", value))
    assert raw == {"a": {"b": value}}
    assert "\n" not in as_override("a.b", value)


@pytest.mark.parametrize(
    ("block", "word"),
    [
        ({"arms": ["ful"]}, "'full'"),
        ({"arms": []}, "arms"),
        ({"arms": {"../out": {}}}, "folder"),
        ({"arms": {"a": {"data.per_class": 3}}}, "same for all arms"),
        ({"arms": {"a": {"training.seed": 3}}}, "same for all arms"),
        ({"arms": {"a": {}}, "baseline": "b"}, "no arm"),
        ({"seeds": 0}, "at least one seed"),
        ({"seeds": [1, 1]}, "different"),
        ({"seeds": True}, "seeds"),
        ({"sizes": {"data.split_seed": [1]}}, "data.per_class"),
        ({"sizes": {"data.per_class": [8, 4]}}, "smallest first"),
        ({"seed": 3}, "'seeds'"),
    ],
)
def test_what_is_no_comparison_is_told(folder, capsys, block, word):
    message = refused(capsys, "check", text_recipe(folder, compare=block))
    assert "compare" in message
    assert word in message


def test_no_arm_is_pushed(folder):
    arms = by_arm(folder, training={"push_to_hub": True, "hub_model_id": "me/it"})
    assert not any(recipe.training["push_to_hub"] for recipe in arms.values())


def test_every_arm_that_is_no_recipe_is_named_at_once(folder):
    arms = {"a": {"penalty.lambda": -1}, "b": {"freeze.type": "train-lst"}, "c": {}}
    recipe = Recipe.load(text_recipe(folder, compare={"arms": arms}))
    with pytest.raises(RecipeError) as told:
        cells(recipe, ())
    first, second = str(told.value).splitlines()[:2]
    assert first.startswith("compare.arms.a: override: penalty.lambda")
    assert "compare.arms.b: override: freeze" in second


def test_a_recipe_with_lora_is_compared_with_arms_that_train_the_weights(folder):
    changes = overrides_of("lp-ft", None, {"adapter": {"type": "lora"}, "penalty": [{"type": "x"}]})
    assert changes["adapter"] is None
    assert changes["penalty"] is None
