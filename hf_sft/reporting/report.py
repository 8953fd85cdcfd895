"""Report: metrics, what moved and what did not, cost, recipe, versions."""

import json
import os
import platform
import resource
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_sft.errors import listing
from hf_sft.recipe import Recipe
from hf_sft.reporting import outcome
from hf_sft.table import table

PACKAGES = ("hf-sft", "torch", "transformers", "accelerate", "datasets", "evaluate", "timm")


@dataclass(frozen=True)
class Report:
    """What a run leaves to be read; ``data`` is report.json, its keys stable."""

    data: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, prepared: Any, started: float) -> "Report":
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
        return cls(outcome.strict(data))

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report of a finished run."""
        return cls(json.loads((folder / "report.json").read_text("utf-8")))

    def save(self, folder: Path) -> None:
        """Write report.json whole or not at all."""
        partial = folder / "report.json.partial"
        text = json.dumps(self.data, indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", "utf-8")
        os.replace(partial, folder / "report.json")

    def table(self) -> str:
        """The result as text for a terminal."""
        data = self.data
        names = data["metric_names"]
        metrics = [
            [split, *(_shown(values.get(key)) for key in names)]
            for split, values in data["metrics"].items()
            if split != "train"
        ]
        moved = [
            [
                group["name"],
                f"{group['trainable']:,}",
                "-" if group["drift"] is None else f"{group['drift']:.4g}",
                f"{100 * group['relative_drift']:.3f} %"
                if group["drift"] is not None
                else origin(group),
            ]
            for group in data["groups"]
        ]
        return "\n\n".join(
            [
                table(["group", "trained", "‖θ−θ⁰‖", "of ‖θ⁰‖"], moved),
                self._audit(),
                table(["split", *names], metrics),
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
        if skipped := self.data.get("skipped_steps"):
            steps = listing(step["step"] for step in skipped)
            frozen += f"\nLeft out, their loss or gradient not finite: steps {steps}."
        if anchor := self.data["source"].get("anchor"):
            frozen += f"\nθ⁰ is {anchor}; training started from {self.data['source']['name']}."
        if not kept["examples"]:
            drawn = " (the weights were drawn anew)" if kept["by"] == outcome.DRAWN else ""
            return f"{frozen}\nThe source's function was not measured{drawn}."
        return f"{frozen}\nSource function on {kept['examples']} rows ({kept['by']}): {numbers}."


def origin(group: dict[str, Any]) -> str:
    """What a layer group is that holds nothing of the source: new, or another group's weights."""
    return "new" if group["parameters"] else "tied"


def _shown(value: float | str | None) -> str:
    """A metric; a dash for none, and ``inf`` as JSON keeps it."""
    return f"{value:.4f}" if isinstance(value, int | float) else value or "-"


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
