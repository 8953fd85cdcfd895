"""The commands; heavy imports inside each, so that --help, list and copy answer at once."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hf_sft import (
    cli_compare,
    cli_explain,
    cli_new,
    cli_push,
    cli_rank,
    cli_recipes,
    cli_search,
    cli_speed,
    cli_weights,
)
from hf_sft.cli_numbers import count
from hf_sft.errors import DataError, OneProcessError, RecipeError, UserError, nearest
from hf_sft.finished import refuse_unfinished
from hf_sft.importing import importing
from hf_sft.interruption import farewell, listening
from hf_sft.told import Told


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 2 a mistake the user can fix, 130 or 143 interrupted."""
    logging.lastResort.setFormatter(Told())
    arguments, rest = parser().parse_known_args(argv)
    try:
        arguments.overrides = overrides(rest, arguments)
        with listening():
            arguments.command(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, OneProcessError):
            print(f"hf-sft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        keeps = getattr(arguments, "keeps", True)
        return farewell(stop, anew=getattr(arguments, "overwrite", None) if keeps else None)
    except BrokenPipeError:  # `hf-sft list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    top = argparse.ArgumentParser(
        prog="hf-sft", description="Supervised fine-tuning as transfer learning."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _about_recipes(partial(_command, commands))
    cli_new.add(partial(_command, commands))
    for about in (cli_rank, cli_compare, cli_search, cli_speed):
        about.add(partial(_command, commands))
    _about_runs(partial(_command, commands))
    cli_push.add(partial(_command, commands))
    cli_weights.add(partial(_command, commands))
    return top


def _command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    options = sub._option_string_actions  # those that are added later as well
    sub.set_defaults(command=function, takes_overrides=False, options=options)
    return sub


def _about_recipes(command) -> None:
    cli_explain.add(command)
    cli_recipes.add(command)
    check = command("check", check_recipe, "validate everything and print the plan; trains nothing")
    check.set_defaults(keeps=False)
    train = command("run", run_recipe, "train as a recipe says")
    for sub in (check, train):
        sub.add_argument("recipe", help="a YAML file, or a name from `hf-sft list`")
        sub.add_argument("override", nargs="*", help="a.b=c, the value read as YAML")
        sub.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
        sub.set_defaults(takes_overrides=True)


def _about_runs(command) -> None:
    show = command("show", show_runs, "print the report of a run, or several side by side")
    show.add_argument("runs", type=Path, nargs="+", help="the output folders of runs")
    evaluate = command("evaluate", evaluate_run, "evaluate a run's model on its data again")
    predict = command("predict", predict_run, "label new inputs with a run's model")
    for sub in (evaluate, predict):
        sub.add_argument("run", type=Path, help="the output folder of a run")
    predict.add_argument("input", type=Path, help="text lines, a table, an image or a folder")
    predict.add_argument(
        "--output",
        type=Path,
        help=".csv or .jsonl (default: csv to the terminal), or a folder for pictures as well",
    )
    predict.add_argument("--batch-size", type=count, default=32)


def overrides(rest: list[str], arguments: argparse.Namespace) -> list[str]:
    """``a.b=c`` may stand anywhere after the recipe; anything else left over is a mistake."""
    given = [*getattr(arguments, "override", []), *rest]
    for word in given:
        if not arguments.takes_overrides or word.startswith("-") or "=" not in word:
            close = nearest(word.partition("=")[0], arguments.options)
            raise RecipeError(
                f"{word!r} is not understood here; see --help. Overrides: key.inner=value.{close}"
            )
    return given


def load(arguments: argparse.Namespace):
    """The recipe on the command line with its overrides."""
    path = cli_recipes.readable(arguments)
    with importing():
        from hf_sft.recipe import Recipe

    return Recipe.load(path, arguments.overrides)


def check_recipe(arguments: argparse.Namespace) -> None:
    """Everything ``run`` does before its first step, and nothing on disk."""
    os.environ.setdefault("TQDM_DELAY", "1")  # s: no bars of what takes a moment among the lines
    recipe = load(arguments)
    with importing():
        from hf_sft.output_folder import claim, nothing_left, refuse_unwritable
        from hf_sft.processes import warn_if_fewer
        from hf_sft.publishing import refuse_hopeless
        from hf_sft.running import prepare
        from hf_sft.training_arguments import training_arguments

    args = training_arguments(recipe)
    warn_if_fewer(args.world_size)
    taken = None
    refuse_unwritable(recipe.output_dir)
    try:
        claim(recipe, arguments.overwrite)
    except RecipeError as error:  # told last, so that a variant of a run can be checked
        taken = error
    with nothing_left(recipe.output_dir):
        prepared = prepare(recipe, args)
        print(prepared.plan())
        prepared.rehearse(recipe)
        refuse_hopeless(recipe, prepared)
    if taken is not None:
        raise RecipeError(f"All but the place is good: one batch went through the model. {taken}")
    print("The recipe is good: one batch went through the model. Nothing was written.")


def run_recipe(arguments: argparse.Namespace) -> None:
    """Train, print the result, and push it when asked: a push that fails takes nothing away."""
    recipe = load(arguments)
    with importing():
        from hf_sft.running import run

    def tell(report) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"{report.table()}\n\nModel, report and card: {recipe.output_dir}", flush=True)

    run(recipe, overwrite=arguments.overwrite, then=tell)


def show_runs(arguments: argparse.Namespace) -> None:
    """Print a run's report, or what sets several apart; needs neither data nor models."""
    for run in arguments.runs:
        refuse_unfinished(run, "report.json")
    from hf_sft.reporting.report import Report

    reports = [Report.load(run) for run in arguments.runs]
    if len(reports) == 1:
        print(reports[0].table())
        return
    with importing():
        from hf_sft.reporting.side_by_side import side_by_side

    print(side_by_side(arguments.runs, reports))


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Print the metrics of a saved model on the splits of its recipe."""
    refuse_unfinished(arguments.run, "recipe.yaml", "model")
    with importing():
        from hf_sft.saved import evaluate

    print(evaluate(arguments.run))


def predict_run(arguments: argparse.Namespace) -> None:
    """Write one record per input: what it is, the label, and every class's probability."""
    refuse_unfinished(arguments.run, "recipe.yaml", "model")
    if not arguments.input.exists():
        raise DataError(f"'{arguments.input}' does not exist; give a file or a folder.")
    with importing():
        from hf_sft.saved import predict

    predict(arguments.run, arguments.input, arguments.output, arguments.batch_size)
