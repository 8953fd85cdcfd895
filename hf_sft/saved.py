"""What can be done with a finished run: evaluate its model again, label new inputs."""

import csv
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from datasets import Dataset, DatasetDict

from hf_sft import output_folder
from hf_sft.data_identity import data_identity
from hf_sft.errors import DataError, SourceError, listing
from hf_sft.recipe import Recipe
from hf_sft.reporting.outcome import plain_metrics
from hf_sft.running import load_data
from hf_sft.table import table
from hf_sft.training_arguments import of_task

log = logging.getLogger(__name__)

AS_TRAINED = ("label_smoothing_factor", "per_device_eval_batch_size")  # what the numbers depend on


def load(run: Path, opens: Sequence[str] = ()) -> tuple[Recipe, Any, Any]:
    """Recipe, model in eval mode, and processor of a run.

    Raises:
        UserError: the folder is no finished run, a file of the blocks ``opens`` is gone, or the
            model cannot be read.
    """
    recipe = output_folder.recorded_recipe(run, opens)
    folder = run / output_folder.MODEL
    try:
        auto = recipe.task.auto_model(transformers.AutoConfig.from_pretrained(folder))
        model = auto.from_pretrained(folder)
        processor = getattr(transformers, recipe.task.auto_processor).from_pretrained(folder)
    except Exception as error:  # bad json, torn tensors: a dozen unrelated types
        raise SourceError(f"'{folder}' cannot be loaded: {error}. Train it anew.") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return recipe, model.eval().to(device), processor


def evaluate(run: Path) -> str:
    """A table of metrics on validation and test, computed as ``run`` does.

    Raises:
        DataError: the data has other classes than the model.
    """
    recipe, model, processor = load(run, opens=["data"])
    data, names = load_data(recipe), recipe.task.trained_names(model.config)
    refuse_other_classes(recipe, data, names)
    if changed := output_folder.changed_data(run, data_identity(data)):
        log.warning(
            "The data are not those of the run (%s): rows it has trained on may be among those "
            "that are measured.", listing(changed)
        )  # fmt: skip
    rows, shown = [], [*recipe.task.metric_names, "loss"]
    for split in ("validation", "test"):
        if split in data:
            metrics = measure(recipe, model, processor, data[split])
            rows.append([split, *(f"{metrics[key]:.4f}" for key in shown)])
    return table(["split", *shown], rows)


def refuse_other_classes(recipe: Recipe, data: DatasetDict, names: list[str]) -> None:
    """The data must have the classes of the model, in the same order.

    Raises:
        DataError: it has others.
    """
    found = recipe.task.names(data)
    if found != names:
        raise DataError(
            f"data: the classes are now {listing(found)}; the model was trained for "
            f"{listing(names)}. Restore the data, or train anew."
        )


def measure(recipe: Recipe, model: Any, processor: Any, rows: Dataset, quiet: bool = False) -> dict:
    """The task's metrics and the loss on checked rows, by their plain names."""
    task = recipe.task
    kind = "Seq2Seq" if task.writes else ""
    with tempfile.TemporaryDirectory() as scratch:
        args = getattr(transformers, f"{kind}TrainingArguments")(
            output_dir=scratch,
            **{key: recipe.training[key] for key in AS_TRAINED if key in recipe.training},
            **of_task(task),
            remove_unused_columns=False,
            batch_eval_metrics=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=quiet,
        )
        trainer = getattr(transformers, f"{kind}Trainer")(
            model=model,
            args=args,
            data_collator=task.collator(processor),
            compute_metrics=task.metrics(task.trained_names(model.config), processor, rows),
            preprocess_logits_for_metrics=task.summarizer(processor),
        )
        if quiet:  # in place of the bar, Trainer would print every result
            trainer.remove_callback(transformers.PrinterCallback)
        encoded = task.held_still(task.encode(rows, processor, model.config), processor)
        return plain_metrics(trainer.evaluate(encoded), "eval")


def predict(run: Path, given: Path, output: Path | None, batch_size: int) -> None:
    """Label every input; csv or jsonl to ``output``, or csv to the terminal.

    Raises:
        DataError: nothing readable at ``given``, or no csv or jsonl can be written to ``output``.
    """
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise DataError(f"--output: '{output}' should end in .csv or .jsonl.")
    if not os.path.exists(given):
        raise DataError(f"'{given}' does not exist; give a file or a folder.")
    if output is None:
        _write_csv(sys.stdout, *_labelled(run, given, batch_size))
        return
    with _whole(output) as file:  # before the model is loaded, which may take minutes
        write = _write_csv if output.suffix == ".csv" else _write_jsonl
        write(file, *_labelled(run, given, batch_size))
    print(f"{output}: written.")  # noqa: T201


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when it is whole; nothing is left, or replaced, when it is not.

    Raises:
        DataError: nothing can be written there.
    """
    target = Path(os.path.realpath(path))  # a link stays a link, as in plain writing
    partial = target.with_name(target.name + ".partial")
    if os.path.isdir(target) or (os.path.exists(target) and not os.access(target, os.W_OK)):
        raise DataError(f"--output: '{path}' is a folder, or protected. Name another file.")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(partial, target)
    except BaseException as error:  # Ctrl-C as well
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise DataError(
                f"--output: '{path}' cannot be written: {error}. Name a file in a folder that "
                "exists and can be written to."
            ) from error
        raise


def _labelled(run: Path, given: Path, batch_size: int) -> tuple[dict, Iterator[dict]]:
    """The first record and those after it: what is wrong with the input is told by the first."""
    recipe, model, processor = load(run)
    records = recipe.task.predict(recipe.task.read_inputs(given), model, processor, batch_size)
    return next(records), records


def _write_csv(file: TextIO, first: dict, records: Iterator[dict]) -> None:
    flat = _flat(first)
    writer = csv.DictWriter(file, flat)
    writer.writeheader()
    writer.writerow(flat)
    writer.writerows(_flat(record) for record in records)


def _write_jsonl(file: TextIO, first: dict, records: Iterator[dict]) -> None:
    for record in itertools.chain([first], records):
        file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _flat(record: dict) -> dict:
    """A record as cells: the probabilities one by one, what else is nested as json."""
    inner = record.pop("probabilities", {})
    cells = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for key, value in record.items()
    }
    return {**cells, **{f"p({name})": value for name, value in inner.items()}}
