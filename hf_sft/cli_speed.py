"""The command that times a recipe's step on this machine: speed."""

import argparse

from hf_sft.cli_numbers import count
from hf_sft.cli_recipes import readable
from hf_sft.errors import RecipeError
from hf_sft.importing import importing


def add(command) -> None:
    """Declare it; ``command(name, function, text)`` gives a parser."""
    text = "time a recipe's step with channels-last and bf16 on this machine; leaves all as it was"
    sub = command("speed", time_steps, text)
    sub.add_argument("recipe", help="a YAML file, or a name from `hf-sft list`")
    sub.add_argument("override", nargs="*", help="a.b=c, the value read as YAML")
    sub.add_argument("--rounds", type=count, default=4, help="turns of every variant")
    sub.add_argument("--steps", type=count, default=5, help="steps of a turn, after two to warm up")
    sub.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    sub.set_defaults(takes_overrides=True, keeps=False)


def time_steps(arguments: argparse.Namespace) -> None:
    """Print the table and what to set."""
    asked = arguments
    if asked.rounds < 2:
        raise RecipeError(f"speed: --rounds {asked.rounds} says nothing: at least 2 are wanted.")
    path = readable(asked)
    with importing():
        from hf_sft.searching.speed import speed, told

    print(told(speed(path, asked.overrides, asked.rounds, asked.steps, asked.compile)))
