"""The command that runs a recipe in many ways beside each other: compare."""

import argparse

from hf_sft.cli_numbers import count
from hf_sft.cli_recipes import readable
from hf_sft.importing import importing


def add(command) -> None:
    """Declare it; ``command(name, function, text)`` gives a parser."""
    text = "run a recipe's arms over seeds and data sizes, and hold them against each other"
    sub = command("compare", compare_arms, text)
    sub.add_argument("recipe", help="a YAML file, or a name from `hf-sft list`")
    sub.add_argument("override", nargs="*", help="a.b=c, the value read as YAML")
    sub.add_argument("--jobs", type=count, default=1, help="runs at the same time")
    sub.add_argument("--keep-models", action="store_true", help="not the reports alone")
    sub.add_argument("--overwrite", action="store_true", help="replace runs of other recipes")
    sub.set_defaults(takes_overrides=True)


def compare_arms(arguments: argparse.Namespace) -> None:
    """Run what is missing, print the table; what failed is told last."""
    asked, path = arguments, readable(arguments)
    with importing():
        from hf_sft.comparing.cells import folder
        from hf_sft.comparing.compare import compare, refuse_failures
        from hf_sft.comparing.compare_table import text
        from hf_sft.recipe import Recipe

    data = compare(path, asked.overrides, asked.jobs, asked.keep_models, asked.overwrite)
    print(text(data))
    print(f"\ncompare.html and compare.json: {folder(Recipe.load(path, asked.overrides))}")
    refuse_failures(data)
