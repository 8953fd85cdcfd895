"""What can be done with a finished run: evaluate its model again, label new inputs."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict

from hf_sft import output_folder
from hf_sft.data_identity import data_identity
from hf_sft.errors import DataError, SourceError, listing
from hf_sft.model_source import lay_out_channels_last
from hf_sft.prediction_files import whole_file, whole_folder, write_csv, write_jsonl
from hf_sft.recipe import Recipe
from hf_sft.reporting.outcome import plain_metrics
from hf_sft.running import load_data
from hf_sft.table import table
from hf_sft.told import Terminal
from hf_sft.training.fixed_draws import FixedDraws
from hf_sft.training.ragged_labels import RaggedLabels
from hf_sft.training_arguments import of_task

log = logging.getLogger(__name__)

TABLE = "predictions.csv"  # of a folder of predictions
AS_TRAINED = ("label_smoothing_factor", "per_device_eval_batch_size")  # what the numbers depend on
PRECISION = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval")  # as much, where they are possible


def load(run: Path, opens: Sequence[str] = ()) -> tuple[Recipe, Any, Any]:
    """Recipe, model in eval mode, and processor of a run.

    Raises:
        UserError: the folder is no finished run, a file of the blocks ``opens`` is gone, or the
            model cannot be read.
    """
    recipe = output_folder.recorded_recipe(run, opens)
    folder = run / output_folder.MODEL
    try:
        trust = {"trust_remote_code": recipe.model.trust_remote_code}  # never asked for at a prompt
        auto = recipe.task.auto_model(transformers.AutoConfig.from_pretrained(folder, **trust))
        model = auto.from_pretrained(folder, **trust)
        reads = getattr(transformers, recipe.task.auto_processor)
        processor = reads.from_pretrained(folder, **trust)
    except Exception as error:  # bad json, torn tensors: a dozen unrelated types
        raise SourceError(f"'{folder}' cannot be loaded: {error}. Train it anew.") from error
    if recipe.model.channels_last:
        model = lay_out_channels_last(model)
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
            **_precision(recipe.training),
            **of_task(task),
            remove_unused_columns=False,
            batch_eval_metrics=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=quiet,
        )
        base = getattr(transformers, f"{kind}Trainer")
        trainer = type("Measuring", (RaggedLabels, FixedDraws, base), {})(
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


def _precision(training: dict[str, Any]) -> dict[str, Any]:
    """The mixed precision of the run, told and left out where this machine has none."""
    asked = {key: True for key in PRECISION if training.get(key)}
    if not asked:
        return {}
    settings = asked | ({"use_cpu": True} if training.get("use_cpu") else {})
    try:
        args = transformers.TrainingArguments(output_dir=os.devnull, report_to="none", **settings)
        refused = "fp16" in asked and args.device.type == "cpu"  # accelerate has it for GPUs only
    except (ValueError, ImportError):
        refused = True
    if refused:
        log.warning(
            "training.%s: not on this machine; measured in full precision, the numbers may differ "
            "a little from the run's.", listing(asked)
        )  # fmt: skip
    return {} if refused else settings


def predict(run: Path, given: Path, output: Path | None, batch_size: int) -> None:
    """Label every input: csv or jsonl to ``output``, csv to the terminal, or a folder of pictures.

    Raises:
        DataError: nothing readable at ``given``, or ``output`` is of no kind that can be written.
    """
    draws = output is not None and not output.suffix and output_folder.recorded_recipe(run, [])
    if output is not None and output.suffix not in (".csv", ".jsonl", ""):
        raise DataError(f"--output: '{output}' should end in .csv or .jsonl.")
    if draws and not draws.task.draws:
        raise DataError(
            f"--output: '{output}' should end in .csv or .jsonl; {draws.task.type} draws nothing "
            "that would need a folder."
        )
    if not os.path.exists(given):
        raise DataError(f"'{given}' does not exist; give a file or a folder.")
    if output is None:
        write_csv(Terminal(sys.stdout), *_labelled(run, given, batch_size))
        return
    if draws:
        with whole_folder(output) as folder, whole_file(folder / TABLE) as file:
            write_csv(file, *_labelled(run, given, batch_size, folder))
    else:
        with whole_file(output) as file:  # before the model is loaded, which may take minutes
            write = write_csv if output.suffix == ".csv" else write_jsonl
            write(file, *_labelled(run, given, batch_size))
    print(f"{output}: written.")  # noqa: T201


def _labelled(
    run: Path, given: Path, size: int, folder: Path | None = None
) -> tuple[dict, Iterator[dict]]:
    """The first record and those after it: what is wrong with the input is told by the first."""
    recipe, model, processor = load(run)
    task = recipe.task
    rows = task.read_inputs(given)
    records = (
        task.predict(rows, model, processor, size)
        if folder is None
        else task.draw(rows, model, processor, size, folder)
    )
    return next(records), records
