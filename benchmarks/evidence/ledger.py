"""Ledger: one line of JSON per finished training, found again by its settings."""

import json
import os
from pathlib import Path


class Ledger:
    """A file that only grows; a line cut off by a crash counts as not written.

    Attributes:
        lines: what is known, in the order of the file: ``experiment``, ``settings``, ``seed``,
            ``results`` and ``cpu_seconds``.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        text = self.path.read_text() if self.path.exists() else ""
        self.whole = text.endswith("\n") or not text
        self.lines = [line for line in map(_parsed, text.splitlines()) if line]
        self._known = {key(line): line for line in self.lines}

    def find(self, experiment: str, settings: dict, seed: int) -> dict | None:
        """The line of these settings, or None."""
        return self._known.get(key({"experiment": experiment, "settings": settings, "seed": seed}))

    def add(self, experiment: str, settings: dict, seed: int, results: dict, cpu: float) -> dict:
        """Append a finished training and bring it to the disk."""
        line = {"experiment": experiment, "settings": settings, "seed": seed}
        line |= {"results": results, "cpu_seconds": round(cpu, 1)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(("" if self.whole else "\n") + json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.whole = True
        self.lines.append(line)
        self._known[key(line)] = line
        return line

    def cpu_hours(self, experiment: str | None = None) -> float:
        """Summed over the lines."""
        wanted = [x for x in self.lines if experiment in (None, x["experiment"])]
        return sum(line["cpu_seconds"] for line in wanted) / 3600


def key(line: dict) -> str:
    """What makes two trainings the same one."""
    return json.dumps([line["experiment"], line["settings"], line["seed"]], sort_keys=True)


def _parsed(text: str) -> dict | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
