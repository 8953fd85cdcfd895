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

from hf_sft.cli import parser
from hf_sft.cli_recipes import find_recipe, recipes
from hf_sft.component import choices
from hf_sft.recipe import Recipe
from hf_sft.reference import KINDS
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


def rows_below(head):
    """First cell's code -> all code in the other cells, of the table with this head."""
    found = defaultdict(set)
    for line in README.partition(f"{head}\n")[2].partition("\n\n")[0].splitlines()[1:]:
        first, *cells = line.strip("|").split("|")
        found[first.split("`")[1]] |= set(re.findall(r"`([^`]+)`", "|".join(cells)))
    return found


def test_every_type_is_in_the_readme():
    told = rows_below("| block | types |")
    for block, base in KINDS.items():
        shipped = {n for n, cls in choices(base).items() if cls.__module__.startswith("hf_sft.")}
        assert shipped - {"train-all"} <= told[block], block


def test_every_task_has_its_row():
    told = rows_below("| `task` | data | measured by | `predict` gives |")
    shipped = {n for n, cls in choices(Task).items() if cls.__module__.startswith("hf_sft.")}
    assert set(told) == shipped


def test_every_shipped_recipe_can_be_found_by_its_name():
    known = recipes()
    assert {"quickstart", "quickstart_text"} <= set(known)
    assert all(find_recipe(name, known).is_file() for name in known)
