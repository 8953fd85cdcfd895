"""Outcome: what a trained run has come to, measured, as JSON values."""

import logging
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from hf_sft import plan
from hf_sft.adapter import merged, told
from hf_sft.errors import UserError
from hf_sft.loaders.hub import commit_of
from hf_sft.penalties.lora_adapters import deltas
from hf_sft.recipe import Recipe
from hf_sft.reporting import drift
from hf_sft.reporting.report import DRAWN

log = logging.getLogger(__name__)

TIMES = ("_runtime", "_per_second", "_model_preparation_time")


def asked(recipe: Recipe, prepared: Any) -> dict[str, Any]:
    """What was to be done, with what and from where."""
    trainer, loaded = prepared.trainer, prepared.loaded
    timm = getattr(loaded.model.config, "model_type", "") == "timm_wrapper"
    return {
        "task": recipe.task.type,
        "metric_names": [*recipe.task.metric_names, "loss"],
        "labels": prepared.names,
        "seed": trainer.args.seed,
        "source": {
            **asdict(loaded.source),
            "fingerprint": trainer.starting_point.fingerprint,
            "anchor": prepared.anchor,
            "left_over": list(loaded.left_over),
        },
        "model": {"library": "timm" if timm else "transformers", **own_code(loaded.model)},
        "auto_class": recipe.task.auto_model(loaded.model.config).__name__,
        "data": from_hub(recipe, prepared.data),
        "splits": {split: len(rows) for split, rows in prepared.data.items()},
        "cut_texts": prepared.cut_texts,
        "adapter": told(trainer.model, recipe.adapter),
        "averaging": recipe.averaging.describe() if recipe.averaging else None,
        "recipe": recipe.raw,
    }


def own_code(model: Any) -> dict[str, str]:
    """The file of code that the saved model needs beside transformers, where it needs one."""
    code = getattr(type(model), "_auto_class", None) and sys.modules[type(model).__module__]
    return {"code": Path(code.__file__).name} if code else {}


def from_hub(recipe: Recipe, data: DatasetDict) -> dict[str, str | None]:
    """The data set's id and commit on the Hub; None for what lies in a folder or a package."""
    path = getattr(recipe.data, "path", None)
    nowhere = {"hub_id": None, "revision": None}
    if recipe.data.type != "hub" or path is None:
        return nowhere
    try:
        recipe.locate(path)
    except UserError:
        return {"hub_id": path, "revision": commit_of(data["train"])}
    return nowhere


def evaluate(task: Any, prepared: Any) -> tuple[dict[str, dict], dict[str, dict], dict[str, dict]]:
    """Plain metric names per split, the tables that are no scalars, and the pictures."""
    trainer, processor = prepared.trainer, prepared.loaded.processor
    metrics, tables, pictures = {"train": {"loss": train_loss(trainer)}}, {}, {}
    for split in ("validation", "test"):
        if split not in prepared.encoded:
            continue
        rows = prepared.data[split]
        trainer.compute_metrics = task.metrics(prepared.names, processor, rows)
        found = trainer.evaluate(prepared.encoded[split], metric_key_prefix=split)
        metrics[split] = plain_metrics(found, split)
        more = task.examples(trainer.compute_metrics, trainer.model, processor, rows)
        tables[split] = {**trainer.compute_metrics.tables, **more}
        pictures[split] = task.pictures(trainer.compute_metrics, trainer.model, processor, rows)
    return metrics, tables, pictures


def train_loss(trainer: Any) -> float:
    """Mean task loss of a step, over all steps taken, before and after the run was resumed."""
    total = torch.as_tensor(trainer.running_loss.total, dtype=torch.float64)
    if trainer.args.world_size > 1:
        total = trainer.accelerator.reduce(total.to(trainer.args.device), "mean")
    return float(total) / max(1, trainer.state.global_step - len(trainer.skipped_steps))


def plain_metrics(found: dict[str, float], prefix: str) -> dict[str, float]:
    """Trainer's metrics without its prefix and its timings."""
    return {
        key.removeprefix(f"{prefix}_"): value
        for key, value in found.items()
        if key.startswith(f"{prefix}_") and not key.endswith(TIMES)
    }


def groups(trainer: Any, layers: list[dict]) -> list[dict]:
    """The plan's rows with how far each group moved, and how alike what it shows still is."""
    model = trainer.model
    moved = trainer.starting_point.distance(model, trainer.layer_groups, deltas(model))
    alike = {layer["name"]: {"cka": layer["cka"], "r2": layer["r2"]} for layer in layers}
    unknown = {"cka": None, "r2": None}
    return [
        {**row, **distance, **alike.get(row["name"], unknown)}
        for row, distance in zip(plan.rows(trainer), moved, strict=True)
    ]


def pulled(trainer: Any) -> dict[str, Any]:
    """The penalties as they were settled, each with its formula, and Ω at the end if on weights."""
    methods = [{**p.describe(), "formula": p.formula} for p in trainer.penalties]
    return {"methods": methods, "value": _omega(trainer)}


def _omega(trainer: Any) -> float | None:
    return trainer.penalty_value() if trainer.pull.weight_priors else None


def frozen(trainer: Any) -> dict[str, Any]:
    """The policy, and the comparison of every frozen tensor and buffer with the source."""
    names = trainer.frozen
    changed = trainer.starting_point.changed(trainer.model, names)
    return {
        **trainer.freeze.describe(),
        "frozen_tensors": len(names),
        "verified_unchanged": not changed,
        "changed": changed,
    }


def citations(recipe: Recipe, trainer: Any) -> list[str]:
    """BibTeX of the papers behind the methods that were used."""
    methods = (*trainer.penalties, trainer.freeze, recipe.adapter, recipe.averaging)
    found = [*(getattr(method, "citation", "") for method in methods), *recipe.task.papers]
    return [paper for paper in dict.fromkeys(found) if paper]


def kept(prepared: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """``retention`` and ``geometry``: the source's function and layers, on up to 256 rows.

    And how many rows of the recipe's source probe its own head gets right, before and after.
    """
    split = next(s for s in ("test", "validation", "train") if s in prepared.encoded)
    if not prepared.loaded.source.pretrained:  # a draw has no function to be kept
        nothing = {"split": split, "examples": 0}
        return {**nothing, "by": DRAWN}, {**nothing, "layers": []}
    trainer, loaded = prepared.trainer, prepared.loaded
    original, has_head = loaded.original()
    rows, collate, tuned = prepared.encoded[split], trainer.data_collator, merged(trainer.model)
    sides = loaded.compared(original, collate, loaded.groups, tuned)
    asked = {}
    if probe := prepared.probe:
        asked["source_accuracy_before"] = probe.accuracy(original.to(tuned.device), collate)
    try:
        found, layers = drift.compare(original, has_head, rows=rows, **sides)
        if probe:  # the comparison has given the source the tuned backbone
            asked["source_accuracy_after"] = probe.accuracy(original, collate)
    except Exception as error:  # two towers, decoders: no one embedding; the run must not fail here
        log.warning("The source's function was not measured: %s", error)
        found, layers = {"examples": 0, "by": "not measured"}, []
    shown = {"split": split, "examples": found["examples"], "layers": layers}
    return {"split": split, **found, **asked}, shown


def checkpoints(trainer: Any) -> dict[str, str | None]:
    """Names of the best and the last checkpoint, relative to ``checkpoints/``."""
    best = trainer.state.best_model_checkpoint
    last = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    return {"best": Path(best).name if best else None, "last": last.name if last.exists() else None}


def timing(trainer: Any, started: float) -> dict[str, float]:
    """Seconds of all legs of a run that was resumed; ``started``: when the last one began."""
    seconds, steps = trainer.memory.seconds, trainer.state.global_step
    last = next((e for e in reversed(trainer.state.log_history) if "train_runtime" in e), {})
    before = max(0.0, seconds - last.get("train_runtime", seconds))
    rows = steps * trainer.get_total_train_batch_size(trainer.args)
    return {
        "total_seconds": before + time.perf_counter() - started,
        "train_seconds": seconds,
        "steps": steps,
        "samples_per_second": rows / max(seconds, 1e-9),
    }


def strict(value: Any) -> Any:
    """A copy that JSON can hold: no infinities, which become words, and no NaN, which is none."""
    if isinstance(value, dict):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
