"""The commands that make a model from finished runs without training: blend, soup, adapt."""

import argparse
from pathlib import Path

from hf_sft.cli_numbers import count, share
from hf_sft.errors import DataError
from hf_sft.finished import refuse_unfinished
from hf_sft.importing import importing

NEEDED = ("recipe.yaml", "model")  # of a run's folder


def add(command) -> None:
    """Declare them; ``command(name, function, text)`` gives a parser."""
    blend = command("blend", blend_run, "go part of the way from a run back to its source")
    soup = command("soup", soup_runs, "average runs of one source")
    adapt = command("adapt", adapt_run, "fit a run's model to unlabelled inputs")
    for sub in (blend, adapt):
        sub.add_argument("run", type=Path, help="the output folder of a run")
    soup.add_argument("runs", type=Path, nargs="+", help="the output folders of the runs")
    adapt.add_argument("input", type=Path, help="text lines, a table, an image or a folder")
    for sub in (blend, soup, adapt):
        sub.add_argument("--output", type=Path, required=True, help="a new folder")
    blend.add_argument("--method", choices=["wise-ft", "lines"], default="wise-ft")
    choice = blend.add_mutually_exclusive_group()
    choice.add_argument("--alpha", type=share, help="0 is the source, 1 the run")
    choice.add_argument("--retain", type=share, help="choose among those that keep this much")
    blend.add_argument(
        "--statistics",
        choices=["measured", "interpolated"],
        default="measured",
        help="of batch norm: measured again on training rows (serves the target), or interpolated "
        "like the weights (keeps more of the source)",
    )
    soup.add_argument("--method", choices=["uniform", "greedy"], default="uniform")
    adapt.add_argument("--method", choices=["statistics", "tent"], required=True)
    adapt.add_argument("--batch-size", type=count, default=32)


def blend_run(arguments: argparse.Namespace) -> None:
    """Walk from the source to the run, and save the chosen model."""
    refuse_unfinished(arguments.run, *NEEDED)
    with importing():
        from hf_sft.weights.blend import blend

    asked = arguments
    result = blend(
        asked.run, asked.output, asked.method, asked.alpha, asked.retain, asked.statistics
    )
    print(f"{result}\n\nModel, card and blend.html: {asked.output}")


def soup_runs(arguments: argparse.Namespace) -> None:
    """Average runs, and save the soup."""
    for run in arguments.runs:
        refuse_unfinished(run, *NEEDED)
    with importing():
        from hf_sft.weights.soup import soup

    print(soup(arguments.runs, arguments.output, arguments.method))
    print(f"\nModel and card: {arguments.output}")


def adapt_run(arguments: argparse.Namespace) -> None:
    """Adapt a model to inputs without labels, and save it."""
    refuse_unfinished(arguments.run, *NEEDED)
    if not arguments.input.exists():
        raise DataError(f"'{arguments.input}' does not exist; give a file or a folder.")
    with importing():
        from hf_sft.weights.adapt import adapt

    asked = arguments
    print(adapt(asked.run, asked.input, asked.output, asked.method, asked.batch_size))
    print(f"\nModel and card: {asked.output}")
