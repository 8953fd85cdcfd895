"""What the README shows works: its Python runs, its recipe is good, its commands exist."""

import re
import shlex
from collections import defaultdict
from pathlib import Path

import test_bare_loop
import tiny
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_sft.adapter import LoRA
from hf_sft.averages import Average
from hf_sft.caching.feature_cache import FeatureCache
from hf_sft.cli import find_recipe, parser, recipes
from hf_sft.comparing.comparison import Comparison
from hf_sft.component import choices
from hf_sft.loaders import Loader
from hf_sft.models import ModelSource
from hf_sft.nonfinite import NonFinite
from hf_sft.recipe import EarlyStopping, Recipe
from hf_sft.tasks import Task

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    """The names of hf-sft's commands."""
    (sub,) = [action for action in parser()._actions if action.choices]
    return set(sub.choices)


def test_the_two_commands_come_first_and_name_what_exists():
    quickstart, tests = blocks("bash")[:2]
    assert quickstart.splitlines()[0] == 'pip install ".[demo]"'
    _, command, recipe = shlex.split(quickstart.splitlines()[1])
    assert command in commands()
    assert (ROOT / recipe).is_file()
    assert tests.splitlines() == ['pip install -e ".[test]"', "pytest"]


def test_every_command_is_in_the_readme_and_the_other_way_round():
    assert set(re.findall(r"`hf-sft ([a-z]+)", README)) == commands()


def test_the_trainer_example_runs(tmp_path):
    rows = tiny.texts(16)
    args = tiny.arguments(tmp_path, num_train_epochs=1)
    names = {"model": tiny.bert(), "args": args, "train": rows, "test": rows, "tokenizer": None}
    exec(blocks("python")[0].replace("count=2", "count=1"), names)
    assert names["trainer"].state.global_step == 2


def test_the_bare_loop_runs_and_is_the_tested_one():
    rows, fresh = tiny.texts(24), test_bare_loop.FRESH["bert"]
    expected, model = tiny.bert(), tiny.bert()
    test_bare_loop.fine_tune(expected, rows, fresh, accumulation=2)
    names = {
        "model": model,
        "fresh": fresh,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0),
        "loader": DataLoader(rows, 4, collate_fn=default_data_collator),
    }
    loop = blocks("python")[1]
    assert len(loop.splitlines()) <= 25
    exec(loop, names)
    assert tiny.distance(tiny.weights(model), tiny.weights(expected)) == 0


def test_the_recipe_is_good(tmp_path):
    (tmp_path / "banking77").mkdir()
    for name in ("train.csv", "test.csv"):
        (tmp_path / "banking77" / name).write_text("text,category\na,b\n")
    (tmp_path / "my.yaml").write_text(blocks("yaml")[0])
    recipe = Recipe.load(tmp_path / "my.yaml", ["penalty.lambda=0.05", "freeze=null"])
    assert recipe.penalty[0].lambda_ == 0.05


def key_table():
    """Block or type -> the keys README gives it, and those marked as needed."""
    keys, needed, block = defaultdict(set), set(), ""
    _, _, table = README.partition("| block | keys |\n|---|---|\n")
    for line in table.partition("\n\n")[0].splitlines():
        _, name, cells, _ = line.split("|")
        block = name.split("`")[1] if name.strip() else block  # an empty name goes on
        keys[block] |= set(re.findall(r"`([^`]+)`", cells))
        needed |= {(block, key) for key in re.findall(r"`([^`]+)`\\\*", cells)}
    return keys, needed


def shipped_blocks():
    """README's name of a block or type -> the fields that are its own."""
    yield "model", ModelSource.model_fields
    yield "early_stopping", EarlyStopping.model_fields
    yield "cache", FeatureCache.model_fields
    yield "nonfinite", NonFinite.model_fields
    yield "compare", Comparison.model_fields
    for name, cls in choices(Average).items():
        yield name, cls.model_fields
    yield "lora", {k: v for k, v in LoRA.model_fields.items() if k != "use_dora"}
    for block, base in (("task", Task), ("data", Loader)):
        yield block, base.model_fields
        for name, cls in choices(base).items():
            if cls.__module__.startswith("hf_sft."):
                shared = base.model_fields
                yield name, {k: f for k, f in cls.model_fields.items() if k not in shared}


def test_every_key_of_data_task_and_model_is_in_the_readme_and_the_other_way_round():
    keys, needed = key_table()
    fields = {name: {k: f for k, f in own.items() if k != "type"} for name, own in shipped_blocks()}
    keys = {name: own for name, own in keys.items() if own}
    assert keys == {name: set(own) for name, own in fields.items() if own}
    assert needed == {
        (n, k) for n, own in fields.items() for k, f in own.items() if f.is_required()
    }


def test_every_shipped_recipe_can_be_found_by_its_name():
    known = recipes()
    assert {"quickstart", "quickstart_text"} <= set(known)
    assert all(find_recipe(name, known).is_file() for name in known)
