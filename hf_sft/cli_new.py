"""The command before the first recipe: new."""

import argparse
from pathlib import Path

from hf_sft.errors import RecipeError
from hf_sft.importing import importing
from hf_sft.told import told


def add(command) -> None:
    """Declare it; ``command(name, function, text)`` gives a parser."""
    new = command("new", new_recipe, "look at data, say what is in it, and write a recipe for it")
    new.add_argument("task", metavar="TASK", help="text-classification, …")
    new.add_argument("data", metavar="DATA", help="a file, a folder, or a Hub data set's user/name")
    new.add_argument("override", nargs="*", help="a.b=c: what the recipe shall say, not guess")
    new.add_argument("--output", type=Path, help="the recipe (default: <name of the data>.yaml)")
    new.add_argument(
        "--model",
        help="what model.name takes, or a whole model block: '{name: …, architecture: …}' "
        "(default: a usual one for the task)",
    )
    new.set_defaults(takes_overrides=True)


def new_recipe(arguments: argparse.Namespace) -> None:
    """Look, tell and write; an existing file is not overwritten."""
    output = arguments.output
    if output is not None:
        _refuse(output)
    with importing():
        from hf_sft.new.recipe import propose
        from hf_sft.new.summary import summary

    folder = Path() if output is None else output.parent
    given = arguments.overrides
    proposal = propose(arguments.task, arguments.data, folder, arguments.model, given)
    if output is None:
        _refuse(output := Path(f"{proposal.name}.yaml"))
    _write(output, proposal.text(str(output)))
    print(told(summary(proposal)))
    print(f"\n{output}: written. Next:\n  hf-sft check {output}\n  hf-sft run {output}")


def _refuse(output: Path) -> None:
    if output.exists():
        raise RecipeError(f"--output: '{output}' exists. Name another file with --output.")
    if output.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--output: '{output}' is no recipe's name; it should end in .yaml.")
    if not output.parent.is_dir():
        raise RecipeError(f"--output: the folder '{output.parent}' does not exist.")


def _write(output: Path, text: str) -> None:
    """The recipe, checked as every recipe is; what is no good does not stay.

    Raises:
        RecipeError: the recipe, with what the command line asked for, cannot be.
    """
    with importing():
        from hf_sft.recipe import Recipe

    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(f"--output: '{output}' cannot be written: {error.strerror}.") from error
    try:
        Recipe.load(output)
    except BaseException:
        output.unlink()
        raise
