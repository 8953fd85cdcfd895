"""The recipes of the package and the user's: where they are, and the commands list and copy."""

import argparse
import os
import shutil
import sys
import textwrap
from itertools import groupby
from pathlib import Path

from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.told import told

LAUNCHING = "accelerate/"  # among the recipes: configurations for accelerate launch
WIDTH = 100
FEW = 4  # recipes that a message names
REST = {"subsequent_indent": " " * 6, "break_on_hyphens": False}  # of a headline


def add(command) -> None:
    """Declare them; ``command(name, function, text)`` gives a parser."""
    command("list", list_recipes, "show the recipes that come with the package")
    copy = command("copy", copy_recipe, "take a recipe to edit it")
    copy.add_argument("recipe", help="a name from `hf-sft list`")
    copy.add_argument("destination", type=Path, help="a file or an existing folder")


def recipes_folder() -> Path:
    """The recipes: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Name (path without ending) -> file, of recipes and of configurations for accelerate."""
    folder = recipes_folder()
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def recipes() -> dict[str, Path]:
    """The recipes among what is shipped."""
    return {name: file for name, file in shipped().items() if not name.startswith(LAUNCHING)}


def find_recipe(name: str, known: dict[str, Path]) -> Path:
    """A file of the user's, else one of ``known`` by its name.

    Raises:
        RecipeError: neither; the message names the nearest.
    """
    if os.path.isfile(name):
        return Path(name)
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    if key in known:
        return known[key]
    if os.path.isdir(name):
        raise RecipeError(f"recipe: '{name}' is a folder. Name a YAML file in it.")
    alike = [choice for choice in known if Path(key).name in choice] or known
    raise RecipeError(
        f"recipe: no file '{name}', and no recipe of that name.{nearest(key, known)} Choices: "
        f"{listing(alike, FEW)}; `hf-sft list` shows all."
    )


def readable(arguments: argparse.Namespace) -> Path:
    """The recipe's file, once it and the overrides are YAML: told before torch is imported.

    What follows takes seconds, so it is said which file was taken.

    Raises:
        RecipeError: no such recipe, no YAML, a token in it, or an override that is none.
    """
    path = find_recipe(arguments.recipe, recipes())
    from hf_sft.recipe_text import written

    _, wrong = written(path, arguments.overrides)
    if wrong:
        raise RecipeError("\n".join(f"override: {line}" for line in wrong))
    if os.environ.get("RANK", "0") == "0":
        print(told(f"hf-sft: reading {path}"), file=sys.stderr, flush=True)
    return path


def list_recipes(arguments: argparse.Namespace) -> None:
    """Print the shipped recipes by task, then what else ``copy`` takes."""
    entries = sorted(map(_entry, *zip(*recipes().items(), strict=True)))
    widest = max(len(name) for _, _, name, _, _ in entries)
    for task, inner in groupby(entries, key=lambda entry: entry[0]):
        print(task)
        for _, _, name, model, headline in inner:
            print(f"  {name:{widest}s}  {model}".rstrip())
            if headline:
                print(textwrap.fill(headline, WIDTH, initial_indent=" " * 6, **REST))
    launching = [name for name in shipped() if name.startswith(LAUNCHING)]
    print("for accelerate launch --config_file (copy takes them too)")
    print(textwrap.fill(listing(launching), WIDTH, initial_indent="  ", subsequent_indent="  "))


def _entry(name: str, file: Path) -> tuple[str, bool, str, str, str]:
    """Task, whether it lies in a folder, name, source model and headline of a recipe."""
    from hf_sft.recipe_text import read

    raw = read(file)
    model = raw["model"]["name"]
    model = model.partition("/")[0] if model.startswith("package:") else model
    first, _, _ = file.read_text("utf-8").partition("\n")
    headline = first.lstrip("# ") if first.startswith("#") else ""
    return raw["task"]["type"], "/" in name, name, model, headline


def copy_recipe(arguments: argparse.Namespace) -> None:
    """Copy a shipped file; an existing one is not overwritten."""
    source, target = find_recipe(arguments.recipe, shipped()), arguments.destination
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RecipeError(f"destination: '{target}' exists. Name another file, or remove it.")
    if not target.parent.is_dir():
        raise RecipeError(f"destination: the folder '{target.parent}' does not exist.")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise RecipeError(
            f"destination: '{target}' cannot be written: {error.strerror}."
        ) from error
    if source.parent.name == LAUNCHING.rstrip("/"):
        launch = f"accelerate launch --config_file {target} -m hf_sft run RECIPE"
        print(f"{target}: its first lines say how it is used: {launch}")
    else:
        print(f"{target}: edit it, then: hf-sft check {target}")
