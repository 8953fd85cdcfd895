"""What can be done with a finished run: evaluate its model again, label new inputs."""

import csv
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from datasets import DatasetDict
from torch.utils.data import DataLoader

from hf_sft import output_folder
from hf_sft.errors import DataError, SourceError, listing
from hf_sft.outcome import plain_metrics
from hf_sft.recipe import Recipe
from hf_sft.report import METRICS
from hf_sft.running import load_data
from hf_sft.table import table

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
        model = getattr(transformers, recipe.task.auto_class).from_pretrained(folder)
        processor = getattr(transformers, recipe.task.auto_processor).from_pretrained(folder)
    except Exception as error:  # bad json, torn tensors: a dozen unrelated types
        raise SourceError(f"'{folder}' cannot be loaded: {error}. Train it anew.") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return recipe, model.eval().to(device), processor


def label_names(model: Any) -> list[str]:
    """The labels in the order of the model's outputs."""
    return [model.config.id2label[i] for i in range(model.config.num_labels)]


def evaluate(run: Path) -> str:
    """A table of metrics on validation and test, computed as ``run`` does.

    Raises:
        DataError: the data has other classes than the model.
    """
    recipe, model, processor = load(run, opens=["data"])
    data, names = load_data(recipe), label_names(model)
    refuse_other_classes(recipe, data, names)
    rows = []
    for split in ("validation", "test"):
        if split in data:
            encoded = recipe.task.encode(data[split], processor, model.config)
            metrics = measure(recipe, model, processor, encoded, names)
            rows.append([split, *(f"{metrics[key]:.4f}" for key in METRICS)])
    return table(["split", *METRICS], rows)


def refuse_other_classes(recipe: Recipe, data: DatasetDict, names: list[str]) -> None:
    """The data must have the classes of the model, in the same order.

    Raises:
        DataError: it has others.
    """
    found = data["train"].features[recipe.task.label].names
    if found != names:
        raise DataError(
            f"data: the classes are now {listing(found)}; the model was trained for "
            f"{listing(names)}. Restore the data, or train anew."
        )


def measure(
    recipe: Recipe,
    model: Any,
    processor: Any,
    encoded: Any,
    names: list[str],
    quiet: bool = False,
) -> dict:
    """The task's metrics and the loss on encoded rows, by their plain names."""
    with tempfile.TemporaryDirectory() as scratch:
        args = transformers.TrainingArguments(
            output_dir=scratch,
            **{key: recipe.training[key] for key in AS_TRAINED if key in recipe.training},
            remove_unused_columns=False,
            batch_eval_metrics=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=quiet,
        )
        trainer = transformers.Trainer(
            model=model,
            args=args,
            data_collator=recipe.task.collator(processor),
            compute_metrics=recipe.task.metrics(names),
        )
        if quiet:  # in place of the bar, Trainer would print every result
            trainer.remove_callback(transformers.PrinterCallback)
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
    records = _records(*load(run), given, batch_size)
    return next(records), records


@torch.no_grad()
def _records(recipe: Recipe, model: Any, processor: Any, given: Path, size: int) -> Iterator[dict]:
    rows, names = recipe.task.read_inputs(given), label_names(model)
    encoded = recipe.task.encode(rows, processor, model.config)
    loader = DataLoader(encoded, size, collate_fn=recipe.task.collator(processor))
    for number, batch in enumerate(loader):
        logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
        part = rows.select(range(number * size, number * size + len(logits)))
        yield from recipe.task.predictions(part, logits, names)


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
    inner = record.pop("probabilities")
    return {**record, **{f"p({name})": value for name, value in inner.items()}}
