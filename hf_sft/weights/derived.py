"""The folder of a model made from finished runs: whole or not at all, with what it was made of."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_sft import model_folder, output_folder
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import dump
from hf_sft.reporting import card, card_metadata, report_page

KINDS = ("blend", "soup", "adapt")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` to write into, which takes its name at the end.

    Raises:
        RecipeError: ``output`` is a file, holds something, or cannot be made.
    """
    if os.path.exists(output) and not (os.path.isdir(output) and not os.listdir(output)):
        raise RecipeError(f"--output: '{output}' exists. Name a new folder, or remove it.")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with output_folder.nothing_left(output.parent):
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise RecipeError(
                f"--output: '{output}' cannot be made: {error.strerror}. Name another folder."
            ) from error
        try:
            yield partial
            if output.exists():
                output.rmdir()
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def facts(run: Path) -> dict[str, Any]:
    """What is on record of a finished run, or of something made from runs.

    Raises:
        RecipeError: nothing is.
    """
    for name in ("report.json", *(f"{kind}.json" for kind in KINDS)):
        if (run / name).is_file():
            try:
                return json.loads((run / name).read_text("utf-8"))
            except ValueError as error:
                raise RecipeError(f"'{run / name}' is torn ({error}); make it again.") from error
    raise RecipeError(f"'{run}' is no finished run: report.json is missing there.")


def save(
    folder: Path, kind: str, run: Path, recipe: Recipe, model: Any, processor: Any, record: dict
) -> None:
    """Write model, recipe, card and ``<kind>.json``; predict and evaluate take such a folder."""
    model_folder.save(model, processor, folder / output_folder.MODEL)
    raw = dict(recipe.raw)
    # The same recipe, run into this folder, shall find another run there and leave it alone.
    raw["training"] = {**(raw.get("training") or {}), "run_name": f"{kind} of {run.name}"}
    (folder / output_folder.RECIPE).write_text(dump(raw), "utf-8")
    (folder / output_folder.CHECKPOINTS).mkdir()
    origin = folder / output_folder.CHECKPOINTS / output_folder.ORIGIN
    origin.write_text(str(recipe.base.resolve()), "utf-8")
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / f"{kind}.json").write_text(text + "\n", "utf-8")
    (folder / "README.md").write_text(render_card(record, kind), "utf-8")


def record(kind: str, known: dict[str, Any], metrics: dict, made: dict[str, Any]) -> dict[str, Any]:
    """``<kind>.json``: the run's facts that still hold, new metrics, and how it was made."""
    kept = {key: known[key] for key in ("task", "labels", "source", "recipe", "splits")}
    return {"schema": 1, **kept, "metrics": metrics, kind: made}


def render_card(data: dict[str, Any], kind: str) -> str:
    """README.md, with no path of this machine."""
    shared = {key: report_page.shareable(data[key]) for key in ("source", "recipe")}
    data = {**data, **shared}
    source, made = data["source"], data[kind]
    facts = ModelCardData(
        library_name="transformers",
        pipeline_tag=data["task"] if card_metadata.has_pipeline_tag(data["task"]) else None,
        tags=["hf_sft", "transfer-learning", made["method"]],
        **card_metadata.licence(source["license"]),
        **card_metadata.base_model(source["hub_id"]),
    )
    title = f"{report_page.source_name(data)} on {report_page.dataset_name(data['recipe'])}"
    revision = f" ({card.plain(source['revision'])})" if source["revision"] else ""
    sections = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {card.plain(title)}, {card.plain(made['method'])}",
        f"A model for {card.plain(data['task'])} with {len(data['labels'])} classes. "
        f"{card.plain(made['how'])} Source: {card.plain(source['name'])}{revision}, fingerprint "
        f"of its weights `{source['fingerprint']}`.",
        metrics_table(data["metrics"]),
        f"## Use\n\n{card.fenced(card.usage(data, None), 'python')}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def metrics_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Metrics by what they were measured on, in Markdown; nothing where nothing was."""
    keys = dict.fromkeys(key for values in metrics.values() for key in values)
    rows = [
        [card.plain(key), *(report_page.number(values.get(key)) for values in metrics.values())]
        for key in keys
    ]
    header = ["metric", *map(card.plain, metrics)]
    return f"## Results\n\n{card.table(header, rows)}" if rows else ""
