"""Which settings of the machine make a recipe's own step faster: variants that take turns."""

import dataclasses
import gc
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_sft.errors import RecipeError
from hf_sft.model_source import image_convolutions
from hf_sft.output_folder import nothing_left
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import as_override
from hf_sft.running import Prepared, prepare
from hf_sft.searching.step_times import Steps, timed
from hf_sft.table import table
from hf_sft.training_arguments import training_arguments

PLAIN = "as the recipe says"
CLEAR = 0.05  # by how much a variant has to be faster or slower in every round
COMPILES = ("torch_compile_backend", "torch_compile_mode")  # each turns torch_compile on
QUIET = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}


@dataclass
class Speed:
    """What was measured.

    Attributes:
        words: variant -> its overrides.
        machine: the device and its threads.
        rounds: variant -> its steps, round by round.
        failed: variant -> why it cannot be had.
        first_of: the freezing policy, where it changes over time: its first phase was measured.
    """

    words: dict[str, list[str]]
    machine: str
    rounds: dict[str, list[Steps]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    first_of: str | None = None

    def ratios(self, variant: str) -> list[float]:
        """Its median step to that of the recipe as it is, round by round."""
        pairs = zip(self.rounds[variant], self.rounds[PLAIN], strict=True)
        return [statistics.median(a.seconds) / statistics.median(b.seconds) for a, b in pairs]

    def apart(self, variant: str) -> float:
        """How far the losses of the same steps are from the recipe's, as a share of these."""
        pairs = zip(self.rounds[variant], self.rounds[PLAIN], strict=True)
        both = [(x, y) for a, b in pairs for x, y in zip(a.losses, b.losses, strict=True)]
        return sum(abs(x - y) for x, y in both) / (sum(abs(y) for _, y in both) or 1.0)

    def verdict(self, variant: str) -> str:
        """What holds in every round."""
        found = self.ratios(variant)
        if max(found) < 1 - CLEAR:
            return "faster"
        return "slower" if min(found) > 1 + CLEAR else "no clear difference"

    @property
    def compares(self) -> bool:
        """Whether a variant beside the recipe itself is left."""
        return len(self.words) - len(self.failed) > 1

    def best(self) -> str | None:
        """The fastest of those that are faster in every round."""
        clear = [name for name in self.rounds if self.verdict(name) == "faster"]
        return min(clear, key=lambda name: statistics.median(self.ratios(name)), default=None)


def speed(
    path: Path, overrides: Sequence[str], rounds: int, steps: int, compiles: bool = False
) -> Speed:
    """Time the first steps of a recipe's run, as it is and in variants; nothing is left of it.

    Each turn is a training of its own from the starting point, on the same batches, which is ended
    after ``steps``. A first round does not count; it is the only one if no variant survives it.

    Raises:
        RecipeError: the recipe is wrong, or several processes run.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError("speed runs in one process: run it without a launcher.")
    with tempfile.TemporaryDirectory() as place:
        beside = Path(place) / "speed"
        words = [as_override("training.output_dir", str(beside)), as_override("cache", None)]
        words += [as_override(f"training.{key}", value) for key, value in QUIET.items()]
        recipe = Recipe.load(path, [*overrides, *words])
        with nothing_left(beside):
            args = training_arguments(recipe)
            prepared = prepare(recipe, args)
            prepared.rehearse(recipe)
            kept = dataclasses.replace(prepared, loaded=None, trainer=None, probe=None)
            found = Speed(_variants(recipe, prepared, compiles), _machine(args.device))
            found.first_of = recipe.freeze.type if recipe.freeze.dynamic else None
            del prepared
            build = partial(_trainer, path, (recipe, kept), [*overrides, *words])
            _take_turns(found, build, 0, steps)
            with _said_before():
                for number in range(1, rounds + 1) if found.compares else ():
                    _take_turns(found, build, number, steps)
    return found


def _variants(recipe: Recipe, prepared: Prepared, compiles: bool) -> dict[str, list[str]]:
    """What the recipe has not set, and without what it has, with their overrides."""
    args = prepared.trainer.args
    on_cpu = ["training.use_cpu=true"] if args.device.type == "cpu" else []
    found = {}
    if recipe.model.channels_last:
        found["channels_last off"] = ["model.channels_last=false"]
    elif image_convolutions(prepared.loaded.model):
        found["channels_last"] = ["model.channels_last=true"]
    if args.bf16 or args.fp16:
        half = "bf16" if args.bf16 else "fp16"
        found[f"{half} off"] = [f"training.{half}=false"]
    else:
        found["bf16"] = ["training.bf16=true", *on_cpu]
    if len(found) == 2:
        found[", ".join(found)] = [word for words in found.values() for word in words]
    if args.torch_compile:
        given = [key for key in COMPILES if recipe.training.get(key) is not None]
        found["torch_compile off"] = [
            "training.torch_compile=false",
            *(f"training.{key}=null" for key in given),
        ]
    elif compiles:
        found["torch_compile"] = ["training.torch_compile=true"]
    return {PLAIN: [], **found}


@contextmanager
def _said_before() -> Iterator[None]:
    """No warnings: each of these trainings would repeat those of the first round."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _take_turns(found: Speed, build: Callable[[list[str]], Any], number: int, steps: int) -> None:
    """One round; a variant that this machine or model does not take is left out from then on.

    Round 0 begins with the recipe itself: if it is broken, nothing else is tried.
    """
    wanted = [name for name in found.words if name not in found.failed]
    for name in wanted if number % 2 or number == 0 else wanted[::-1]:
        try:
            taken = timed(partial(build, found.words[name]), steps)
        except Exception as error:  # whatever an absent compiler or an old processor leads to
            if name == PLAIN:
                raise
            found.failed[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            found.rounds.pop(name, None)
            continue
        gc.collect()  # a trainer and its callbacks hold each other, and the model
        if number:
            found.rounds.setdefault(name, []).append(taken)


def _trainer(path: Path, base: tuple[Recipe, Any], given: list[str], more: list[str]) -> Any:
    """A new trainer of a variant, on the data that ``base`` holds encoded."""
    recipe, prepared = base
    own = Recipe.load(path, [*given, *more])
    own = dataclasses.replace(own, task=recipe.task)  # it knows the data
    return prepare(own, training_arguments(own), prepared).trainer


def _machine(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def told(found: Speed) -> str:
    """The table, and what to set for the fastest of what is faster in every round."""
    absent = [f"{name}: not here: {reason}" for name, reason in found.failed.items()]
    if not found.compares:
        return "\n".join([*absent, "Nothing to compare the recipe with on this machine."])
    rows = [_row(found, name) for name in found.words if name in found.rounds]
    heads = ["variant", "ms a step", "to the recipe's", "in every round", "losses apart"]
    parts = [f"{found.machine}; {len(found.rounds[PLAIN])} rounds."]
    if found.first_of is not None:
        parts.append(
            f"measured: the first phase of freeze {found.first_of}, not what it opens later."
        )
    parts += [table(heads, rows), *absent]
    best = found.best()
    clear = f"more than {CLEAR:.0%} faster in every round"
    if best is None:
        parts.append(f"Nothing is {clear}: leave the recipe as it is.")
    else:
        parts.append(f"{best} is {clear}. To set it: {' '.join(found.words[best])}")
    return "\n".join(parts)


def _row(found: Speed, name: str) -> list[str]:
    times = [second for steps in found.rounds[name] for second in steps.seconds]
    milliseconds = f"{1000 * statistics.median(times):.1f}"
    if name == PLAIN:
        return [name, milliseconds, "1", "", ""]
    low, middle, high = statistics.quantiles(found.ratios(name), n=4, method="inclusive")
    ratio = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    return [name, milliseconds, ratio, found.verdict(name), f"{found.apart(name):.1e}"]
