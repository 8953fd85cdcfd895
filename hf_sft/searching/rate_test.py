"""The learning-rate range test of a recipe: what it says, as text and as a picture."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from hf_sft.errors import RecipeError
from hf_sft.output_folder import nothing_left
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import as_override
from hf_sft.reporting.charts import INK, LINES, drawing
from hf_sft.running import prepare
from hf_sft.searching.rate_range import RateRange, rates_between
from hf_sft.searching.rate_sweep import sweep
from hf_sft.training_arguments import training_arguments

CAPTION = "Training loss against the learning rate, which rises from step to step"
NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
STYLE = (
    "<style>:root{--rule:#ccc;--line1:#2563be;--line2:#c2570c;--line3:#15803d}"
    "svg{color:#1c1e21;background:#fff}</style>"
)


def rate_test(
    path: Path, overrides: Sequence[str], low: float, high: float, steps: int
) -> RateRange:
    """Prepare a recipe's run and sweep its learning rate; nothing is left in its output folder.

    Raises:
        RecipeError: the recipe is wrong, the ends are no range, or several processes run.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError("lr runs in one process: run it without a launcher.")
    if not 0 < low < high or steps < 10:
        raise RecipeError(
            f"lr: --from {low:g} --to {high:g} --steps {steps} is no test: 0 < from < to is "
            "wanted, and at least 10 steps."
        )
    with tempfile.TemporaryDirectory() as place:
        beside = Path(place) / "lr"
        words = [
            as_override("training.output_dir", str(beside)),
            as_override("training.learning_rate", low),
            as_override("training.bf16", False),
            as_override("training.fp16", False),
        ]
        recipe = Recipe.load(path, [*overrides, *words])
        with nothing_left(beside):
            prepared = prepare(recipe, training_arguments(recipe))
            prepared.rehearse(recipe)
            return sweep(prepared.trainer, rates_between(low, high, steps))


def told(found: RateRange) -> str:
    """The suggestion and what it rests on."""
    parts = [
        f"{len(found.rates)} steps from {found.rates[0]:.2g} to {found.rates[-1]:.2g}.",
        "The loss falls nowhere: more steps, a wider range, or another recipe."
        if found.steepest is None
        else f"It falls fastest at {found.steepest:.2g}.",
        "It did not diverge; --to may be higher."
        if found.diverged is None
        else f"It diverges at {found.diverged:.2g}.",
    ]
    if found.phase:
        parts.append(f"\n{found.phase[0].upper()}{found.phase[1:]}")
    if found.suggestion is not None:
        parts.append(f"\nTry training.learning_rate={found.suggestion:.1e}")
    return " ".join(parts)


def picture(found: RateRange) -> str:
    """The curve as a file of svg that needs no other."""

    def draw(axes: Axes) -> None:
        axes.plot(found.rates, found.losses, lw=0.7, alpha=0.5, color=LINES[0], label="a batch")
        axes.plot(found.rates, found.smoothed, lw=1.8, color=LINES[0], label="running mean")
        marks = ((found.suggestion, LINES[2], "suggestion"), (found.diverged, LINES[1], "diverges"))
        for rate, colour, name in marks:
            if rate is not None:
                axes.axvline(rate, color=colour, lw=1.2, ls="--", label=f"{name}: {rate:.1e}")
        axes.set_xscale("log")
        finite = [value for value in found.smoothed if value == value]
        axes.set_ylim(0, 2 * max(finite[: max(1, len(finite) // 2)]))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss", color=INK)

    svg = drawing(CAPTION, (5.4, 3.4), draw)
    head, _, rest = svg.partition(">")
    return f"{head} {NAMESPACES}>{STYLE}{rest}"
