"""Report: metrics, what moved and what did not, cost, recipe, versions."""

import json
import logging
import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_sft import drift, plan
from hf_sft.recipe import Recipe
from hf_sft.table import table

log = logging.getLogger(__name__)

PACKAGES = ("hf-sft", "torch", "transformers", "accelerate", "datasets", "evaluate", "timm")


@dataclass(frozen=True)
class Report:
    """What a run leaves to be read; ``data`` is report.json, its keys stable."""

    data: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, prepared: Any, started: float) -> "Report":
        """Evaluate, audit and measure a trained run; a collective on all processes."""
        trainer, loaded = prepared.trainer, prepared.loaded
        metrics, tables = evaluate(prepared)
        changed = trainer.starting_point.changed(trainer.model, trainer.frozen)
        seconds = metrics["train"].pop("seconds")
        data = {
            "schema": 1,
            "task": recipe.task.type,
            "labels": prepared.names,
            "seed": trainer.args.seed,
            "source": {
                **asdict(loaded.source),
                "fingerprint": trainer.starting_point.fingerprint,
                "left_over": list(loaded.left_over),
            },
            "metrics": metrics,
            "tables": tables,
            "groups": groups(trainer),
            "penalty": {
                "methods": [penalty.describe() for penalty in trainer.penalties],
                "value": trainer.penalty_value(),
            },
            "freeze": {
                **recipe.freeze.describe(),
                "frozen_tensors": len(trainer.frozen),
                "verified_unchanged": not changed,
                "changed": changed,
            },
            "retention": retention(prepared),
            "checkpoints": checkpoints(trainer),
            "timing": {
                "total_seconds": time.perf_counter() - started,
                "train_seconds": seconds,
                "steps": trainer.state.global_step,
                "samples_per_second": trainer.state.global_step
                * trainer.get_total_train_batch_size(trainer.args)
                / max(seconds, 1e-9),
            },
            "peak_memory_bytes": peak_memory(),
            "environment": environment(trainer.args),
            "splits": {split: len(rows) for split, rows in prepared.data.items()},
            "loss_rescaled": trainer.rescales_loss,
            "history": trainer.state.log_history,
            "recipe": recipe.raw,
        }
        return cls(data)

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report of a finished run."""
        return cls(json.loads((folder / "report.json").read_text("utf-8")))

    def save(self, folder: Path) -> None:
        """Write report.json whole or not at all."""
        partial = folder / "report.json.partial"
        partial.write_text(json.dumps(self.data, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, folder / "report.json")

    def table(self) -> str:
        """The result as text for a terminal."""
        data = self.data
        metrics = [
            [split, *(f"{values.get(key, float('nan')):.4f}" for key in METRICS)]
            for split, values in data["metrics"].items()
            if "accuracy" in values
        ]
        moved = [
            [
                group["name"],
                f"{group['trainable']:,}",
                "-" if group["drift"] is None else f"{group['drift']:.4g}",
                "new" if group["drift"] is None else f"{100 * group['relative_drift']:.3f} %",
            ]
            for group in data["groups"]
        ]
        return "\n\n".join(
            [
                table(["group", "trained", "‖θ−θ⁰‖", "of ‖θ⁰‖"], moved),
                self._audit(),
                table(["split", *METRICS], metrics),
            ]
        )

    def _audit(self) -> str:
        freeze, kept = self.data["freeze"], self.data["retention"]
        frozen = (
            f"All {freeze['frozen_tensors']} frozen tensors are bit-equal to the source."
            if freeze["verified_unchanged"]
            else f"CHANGED although frozen: {', '.join(freeze['changed'])}"
        )
        numbers = ", ".join(
            f"{key} {value:.4f}" for key, value in kept.items() if isinstance(value, float)
        )
        if not kept["examples"]:
            return f"{frozen}\nThe source's function was not measured."
        return f"{frozen}\nSource function on {kept['examples']} rows ({kept['by']}): {numbers}."


METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error", "loss")


def evaluate(prepared: Any) -> tuple[dict[str, dict], dict[str, dict]]:
    """Plain metric names per split, and the tables that are no scalars."""
    trainer = prepared.trainer
    final = next(e for e in reversed(trainer.state.log_history) if "train_loss" in e)
    metrics = {"train": {"loss": final["train_loss"], "seconds": final["train_runtime"]}}
    tables = {}
    for split in ("validation", "test"):
        if split not in prepared.encoded:
            continue
        found = trainer.evaluate(prepared.encoded[split], metric_key_prefix=split)
        metrics[split] = plain_metrics(found, split)
        tables[split] = trainer.compute_metrics.tables
    return metrics, tables


def plain_metrics(found: dict[str, float], prefix: str) -> dict[str, float]:
    """Trainer's metrics without its prefix and its timings."""
    return {
        key.removeprefix(f"{prefix}_"): value
        for key, value in found.items()
        if key.startswith(f"{prefix}_") and not key.endswith(TIMES)
    }


TIMES = ("_runtime", "_per_second", "_model_preparation_time")


def groups(trainer: Any) -> list[dict]:
    """The plan's rows with how far each group moved."""
    moved = trainer.starting_point.distance(trainer.model, trainer.layer_groups)
    return [{**row, **distance} for row, distance in zip(plan.rows(trainer), moved, strict=True)]


def retention(prepared: Any) -> dict:
    """Source-function drift on test, validation or train rows."""
    split = next(s for s in ("test", "validation", "train") if s in prepared.encoded)
    trainer, loaded = prepared.trainer, prepared.loaded
    original, has_head = loaded.original()
    head = set(loaded.groups.head.parameters)
    rows, collate = prepared.encoded[split], trainer.data_collator
    try:
        kept = drift.retention(original, has_head, trainer.model, head, rows, collate)
    except Exception as error:  # two towers, decoders: no one embedding; the run must not fail here
        log.warning("The source's function was not measured: %s", error)
        kept = {"examples": 0, "by": "not measured"}
    return {"split": split, **kept}


def checkpoints(trainer: Any) -> dict[str, str | None]:
    """Names of the best and the last checkpoint, relative to ``checkpoints/``."""
    best = trainer.state.best_model_checkpoint
    last = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    return {"best": Path(best).name if best else None, "last": last.name if last.exists() else None}


def peak_memory() -> int:
    """Bytes: of the accelerator where there is one, else the process's largest resident size."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at the size of the process that launched this one
        lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment(args: Any) -> dict[str, Any]:
    """Versions and hardware."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processes": args.world_size,
    }
