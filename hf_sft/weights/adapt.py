"""adapt: a run's model made at home among unlabelled inputs."""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader

from hf_sft import saved
from hf_sft.errors import DataError, UserError
from hf_sft.weights import derived
from hf_sft.weights.norm_statistics import (
    fixed_norms,
    reestimate_statistics_,
    statistical_norms,
)
from hf_sft.weights.origin import mixed_batches
from hf_sft.weights.tent import affine_parameters, mean_entropy, tent_

METHODS = ("statistics", "tent")


def adapt(
    run: Path, given: Path, output: Path, method: str = "statistics", batch_size: int = 32
) -> str:
    """Adapt a run's model to the inputs at ``given`` and leave it in ``output``.

    ``statistics`` measures mean and variance of every batch norm on them; ``tent`` takes one step
    a batch towards surer answers over the affine parameters of all norm layers, then measures the
    statistics. No label is needed, and no metric of the run is carried over.

    Raises:
        UserError: anything the user can put right; nothing has been written then.
    """
    if method not in METHODS:
        raise UserError(f"--method: {method!r} is not known. Choices: {', '.join(METHODS)}.")
    if not os.path.exists(given):
        raise DataError(f"'{given}' does not exist; give a file or a folder.")
    with derived.whole_folder(output) as folder:
        facts = derived.facts(run)
        recipe, model, processor = saved.load(run)
        rows = recipe.task.read_inputs(given)
        batches = _batches(recipe, model, processor, rows, batch_size)
        made = _adapted(run, model, batches, method)
        record = derived.record("adapt", facts, {}, {**made, "row_count": len(rows)})
        derived.save(folder, "adapt", run, recipe, model, processor, record)
    return summary(record)


def _batches(recipe: Any, model: Any, processor: Any, rows: Dataset, size: int) -> DataLoader:
    if statistical_norms(model) and min(size, len(rows)) == 1:
        raise DataError(
            "adapt: batch norm compares the rows of a batch, so two are needed. Give more inputs "
            "and a larger --batch-size."
        )

    def encode(part: Dataset) -> Dataset:
        return recipe.task.encode(part, processor, model.config)

    return mixed_batches(rows, encode, recipe.task.collator(processor), size)


def _adapted(run: Path, model: Any, batches: DataLoader, method: str) -> dict[str, Any]:
    """Change the model in place; what was done, and the entropy before and after."""
    norms = statistical_norms(model)
    if method == "statistics" and not norms:
        fixed = len(fixed_norms(model))
        what = f"the {fixed} batch norms of {{}} are fixed" if fixed else "{} has no batch norm"
        raise UserError(
            f"--method statistics: {what.format(type(model).__name__)}. Use --method tent."
        )
    before = mean_entropy(model, batches)
    if method == "tent":
        tent_(model, batches)
    if norms:
        reestimate_statistics_(model, batches)
    return {
        "method": "tent" if method == "tent" else "batch-norm-statistics",
        "run": run.resolve().name,
        "mean_entropy": {"before": before, "after": mean_entropy(model, batches)},
        "affine_parameters": len(affine_parameters(model)) if method == "tent" else 0,
        "statistics_measured_again": len(norms),
        "how": f"A fine-tuned model adapted to unlabelled inputs ({method}). "
        "Measure it on labelled rows before you trust it.",
    }


def summary(record: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    made = record["adapt"]
    entropy = made["mean_entropy"]
    return (
        f"{made['method']} on {made['row_count']} inputs: {made['affine_parameters']} affine "
        f"tensors and the statistics of {made['statistics_measured_again']} batch norms adapted.\n"
        f"Mean entropy of the answers: {entropy['before']:.4f} before, {entropy['after']:.4f} "
        "after (nats)."
    )
