"""The commands; heavy imports inside each, so that --help, list and copy answer at once."""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hf_sft import cli_compare, cli_explain, cli_new, cli_push, cli_rank, cli_search, cli_weights
from hf_sft.errors import OneProcessError, RecipeError, UserError, listing, nearest
from hf_sft.interruption import farewell, listening
from hf_sft.told import Told

LAUNCHING = "accelerate/"  # among the recipes: configurations for accelerate launch


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
    for about in (cli_rank, cli_compare, cli_search):
        about.add(partial(_command, commands), lambda name: find_recipe(name, recipes()))
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
    command("list", list_recipes, "show the recipes that come with the package")
    copy = command("copy", copy_recipe, "take a recipe to edit it")
    copy.add_argument("recipe", help="a name from `hf-sft list`")
    copy.add_argument("destination", type=Path, help="a file or an existing folder")
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


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


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
    raise RecipeError(
        f"recipe: no file '{name}', and no recipe of that name. Choices: {listing(known, 40)}."
        f"{nearest(key, known)}"
    )


def list_recipes(arguments: argparse.Namespace) -> None:
    """Print name and first comment line of every shipped recipe, then what else ``copy`` takes."""
    for name, file in recipes().items():
        first, _, _ = file.read_text("utf-8").partition("\n")
        print(f"{name:48s} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
    launching = [name for name in shipped() if name.startswith(LAUNCHING)]
    print(f"For accelerate launch --config_file (copy takes them too): {listing(launching)}")


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
    print(f"{target}: edit it, then: hf-sft check {target}")


def load(arguments: argparse.Namespace):
    """The recipe on the command line with its overrides."""
    from hf_sft.recipe import Recipe

    return Recipe.load(find_recipe(arguments.recipe, recipes()), arguments.overrides)


def check_recipe(arguments: argparse.Namespace) -> None:
    """Everything ``run`` does before its first step, and nothing on disk."""
    from hf_sft.output_folder import claim, nothing_left
    from hf_sft.processes import warn_if_fewer
    from hf_sft.publishing import refuse_hopeless
    from hf_sft.running import prepare
    from hf_sft.training_arguments import training_arguments

    recipe = load(arguments)
    args = training_arguments(recipe)
    warn_if_fewer(args.world_size)
    taken = None
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
    from hf_sft.running import run

    recipe = load(arguments)

    def tell(report) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"{report.table()}\n\nModel, report and card: {recipe.output_dir}", flush=True)

    run(recipe, overwrite=arguments.overwrite, then=tell)


def show_runs(arguments: argparse.Namespace) -> None:
    """Print a run's report, or what sets several apart; needs neither data nor models."""
    from hf_sft.reporting.report import Report
    from hf_sft.reporting.side_by_side import side_by_side

    for run in arguments.runs:
        if not (run / "report.json").is_file():
            raise RecipeError(f"'{run}' is no finished run: report.json is missing there.")
    reports = [Report.load(run) for run in arguments.runs]
    print(reports[0].table() if len(reports) == 1 else side_by_side(arguments.runs, reports))


def evaluate_run(arguments: argparse.Namespace) -> None:
    """Print the metrics of a saved model on the splits of its recipe."""
    from hf_sft.saved import evaluate

    print(evaluate(arguments.run))


def predict_run(arguments: argparse.Namespace) -> None:
    """Write one record per input: what it is, the label, and every class's probability."""
    from hf_sft.saved import predict

    predict(arguments.run, arguments.input, arguments.output, arguments.batch_size)
