"""The commands that look for a recipe's settings: search and lr."""

import argparse
from pathlib import Path

from hf_sft.cli_numbers import count
from hf_sft.cli_recipes import readable
from hf_sft.errors import RecipeError
from hf_sft.importing import importing


def add(command) -> None:
    """Declare them; ``command(name, function, text)`` gives a parser."""
    text = "look for the best learning rate, λ and freezing, or what a recipe's search block names"
    look = command("search", search_recipe, text)
    text = "try rising learning rates for a few steps and suggest one; leaves all as it was"
    rates = command("lr", test_rates, text)
    for sub in (look, rates):
        sub.add_argument("recipe", help="a YAML file, or a name from `hf-sft list`")
        sub.add_argument("override", nargs="*", help="a.b=c, the value read as YAML")
        sub.set_defaults(takes_overrides=True)
    look.add_argument("--overwrite", action="store_true", help="begin the search anew")
    rates.add_argument("--from", dest="low", type=float, default=1e-7, help="the first rate")
    rates.add_argument("--to", dest="high", type=float, default=1.0, help="the last rate")
    rates.add_argument("--steps", type=count, default=100, help="one rate each")
    rates.add_argument("--picture", type=Path, help="an svg file of the curve")


def search_recipe(arguments: argparse.Namespace) -> None:
    """Run the trials that are missing; print the table and where the best recipe lies."""
    path = readable(arguments)
    with importing():
        from hf_sft.searching.search import search
        from hf_sft.searching.search_table import text

    data, place = search(path, arguments.overrides, arguments.overwrite)
    print(text(data))
    print(f"\nbest.yaml, search.html and search.json: {place}")


def test_rates(arguments: argparse.Namespace) -> None:
    """Print what the test says, and draw it where asked."""
    asked, file = arguments, arguments.picture
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise RecipeError(f"--picture: '{file}' is a folder, or lies in none. Name an svg file.")
    path = readable(asked)
    with importing():
        from hf_sft.searching.rate_test import picture, rate_test, told

    found = rate_test(path, asked.overrides, asked.low, asked.high, asked.steps)
    print(told(found))
    if file is not None:
        file.write_text(picture(found), "utf-8")
        print(f"The curve: {file}")
