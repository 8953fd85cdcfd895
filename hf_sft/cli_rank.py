"""The command that comes before training: rank."""

import argparse

from hf_sft.cli_recipes import readable
from hf_sft.importing import importing


def add(command) -> None:
    """Declare it; ``command(name, function, text)`` gives a parser."""
    text = "order source models by their fit to the data; trains nothing"
    rank = command("rank", rank_models, text)
    rank.add_argument("recipe", help="a YAML file, or a name from `hf-sft list`")
    rank.add_argument("override", nargs="*", help="a.b=c, the value read as YAML")
    rank.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL",
        help="what model.name takes, or a whole model block: '{name: …, architecture: …}'",
    )  # fmt: skip
    rank.set_defaults(takes_overrides=True)


def rank_models(arguments: argparse.Namespace) -> None:
    """Print every candidate's scores on the recipe's training rows."""
    path = readable(arguments)
    with importing():
        from hf_sft.ranking.rank import overrides_among, rank, show
        from hf_sft.recipe import Recipe

    models, late = overrides_among(arguments.models)
    changes = [*arguments.overrides, *late]
    recipe = Recipe.load(path, changes, opens=["data"])
    print(show(rank(recipe, models)))
