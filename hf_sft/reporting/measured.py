"""The report of a trained run: metrics, what moved and what did not, cost, recipe, versions."""

import platform
import resource
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_sft.recipe import Recipe
from hf_sft.reporting import outcome
from hf_sft.reporting.report import Report

PACKAGES = ("hf-sft", "torch", "transformers", "accelerate", "datasets", "evaluate", "timm")


def measured(recipe: Recipe, prepared: Any, started: float) -> Report:
    """Evaluate, audit and measure a trained run; a collective on all processes."""
    trainer = prepared.trainer
    metrics, tables, pictures = outcome.evaluate(recipe.task, prepared)
    retention, geometry = outcome.kept(prepared)
    data = {
        "schema": 1,
        **outcome.asked(recipe, prepared),
        "metrics": metrics,
        "tables": tables,
        "pictures": pictures,
        "groups": outcome.groups(trainer, geometry["layers"]),
        "penalty": outcome.pulled(trainer),
        "freeze": outcome.frozen(trainer),
        "citations": outcome.citations(recipe, trainer),
        "transitions": trainer.follower.transitions,
        "retention": retention,
        "geometry": geometry,
        "checkpoints": outcome.checkpoints(trainer),
        "timing": outcome.timing(trainer, started),
        "peak_memory_bytes": peak_memory(),
        "environment": environment(trainer.args),
        "loss_rescaled": trainer.rescales_loss,
        "skipped_steps": trainer.skipped_steps,
        "history": trainer.state.log_history,
    }
    return Report(outcome.strict(data))


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
