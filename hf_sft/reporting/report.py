"""Report: what a run leaves to be read, from its file and as text; needs no torch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sft.errors import RecipeError, listing
from hf_sft.table import table

HOLDS = (("schema", int), ("metric_names", list), ("metrics", dict), ("groups", list),
         ("freeze", dict), ("retention", dict), ("source", dict))  # fmt: skip
DRAWN = "nothing: the weights were drawn anew"  # what the source's function is measured by


@dataclass(frozen=True)
class Report:
    """What a run leaves to be read; ``data`` is report.json, its keys stable."""

    data: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report of a finished run.

        Raises:
            RecipeError: the file is torn, or holds something else.
        """
        path = folder / "report.json"
        try:
            data = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise RecipeError(f"'{path}' is torn ({error}); run it again.") from error
        if not isinstance(data, dict) or not all(isinstance(data.get(k), t) for k, t in HOLDS):
            raise RecipeError(f"'{path}' is no report of hf-sft. Name a run's output folder.")
        return cls(data)

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
        if not freeze["verified_unchanged"]:
            frozen = f"CHANGED although frozen: {', '.join(freeze['changed'])}"
        elif freeze["frozen_tensors"]:
            frozen = f"All {freeze['frozen_tensors']} frozen tensors are bit-equal to the source."
        else:
            frozen = "Nothing stayed frozen."
        numbers = ", ".join(
            f"{key} {value:.4f}" for key, value in kept.items() if isinstance(value, float)
        )
        if skipped := self.data.get("skipped_steps"):
            steps = listing(step["step"] for step in skipped)
            frozen += f"\nLeft out, their loss or gradient not finite: steps {steps}."
        if anchor := self.data["source"].get("anchor"):
            frozen += f"\nθ⁰ is {anchor}; training started from {self.data['source']['name']}."
        if not kept["examples"]:
            drawn = " (the weights were drawn anew)" if kept["by"] == DRAWN else ""
            return f"{frozen}\nThe source's function was not measured{drawn}."
        return f"{frozen}\nSource function on {kept['examples']} rows ({kept['by']}): {numbers}."


def origin(group: dict[str, Any]) -> str:
    """What a layer group is that holds nothing of the source: new, or another group's weights."""
    return "new" if group["parameters"] else "tied"


def _shown(value: float | str | None) -> str:
    """A metric; a dash for none, and ``inf`` as JSON keeps it."""
    return f"{value:.4f}" if isinstance(value, int | float) else value or "-"
