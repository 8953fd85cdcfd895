"""docs/evidence.md and its pictures, from the ledger and from what was read in it (reading/)."""

import math
from pathlib import Path
from typing import Any

import closed_form
import figures
from arms import SELECTION_SEED
from ledger import Ledger
from summary import Row, paired, rows, spelled, spread, tried

READING = Path(__file__).with_name("reading")
BASE = "full fine-tuning"
FRONT = "Blue: arms that no other arm beats in both. Bars: standard errors, where there are seeds."


def write(experiments: list[Any], ledger: Ledger, folder: Path) -> None:
    """Everything anew; an experiment without a line is named as missing."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_read("intro"), _costs(experiments, ledger), _theory(folder)]
    parts += [section(experiment, ledger, folder) for experiment in experiments]
    parts.append(_read("missing"))
    (folder / "evidence.md").write_text("\n\n".join(part for part in parts if part) + "\n")


def section(experiment: Any, ledger: Ledger, folder: Path) -> str:
    """Heading, what was done, picture, table, reading."""
    found = rows(experiment, ledger)
    title = f"## {experiment.title}"
    if not found:
        return f"{title}\n\nNothing has been measured yet."
    parts = [title, experiment.setting]
    if experiment.retained:
        picture = f"evidence_{experiment.name}.svg"
        figures.pareto(found, (experiment.retained, "accuracy on the target, %"), folder / picture)
        parts += [f"![{experiment.title}: accuracy against retention]({picture})", FRONT]
    base = getattr(experiment, "base", BASE)
    parts += [table(found, experiment.retained, base), _read(experiment.name)]
    if any(row.choice.tried < row.choice.of for row in found):
        parts.append(candidates(experiment, ledger))
    return "\n\n".join(part for part in parts if part)


def candidates(experiment: Any, ledger: Ledger) -> str:
    """All that was tried on the selection seed, where not every candidate was."""
    lines = [
        f"Everything that was trained on seed {SELECTION_SEED}, chosen or not:",
        "",
        f"| settings | accuracy, validation | accuracy, test | {experiment.retained} |",
        "|---|---|---|---|",
    ]
    for name, validation, test in tried(experiment, ledger):
        scores = (validation["accuracy"], test["accuracy"], test["retention"])
        cells = ["–" if score is None else f"{100 * score:.1f}" for score in scores]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def table(found: list[Row], retained: str | None, against: str = BASE) -> str:
    """One line per arm, Δ paired by seed against one of them."""
    base = next((row for row in found if row.arm == against), None)
    titles = ["arm", "chosen", "seeds", "accuracy", "Δ accuracy"]
    titles += [retained, "Δ"] if retained else []
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in found:
        cells = [row.arm, spelled(row.choice), str(len(row.accuracy)), spread(row.accuracy)]
        other = None if row is base else base
        cells += [_difference(row.accuracy, other and other.accuracy)]
        if retained:
            cells += [spread(row.retention), _difference(row.retention, other and other.retention)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(values: dict[int, float], base: dict[int, float] | None) -> str:
    return "–" if base is None else paired(values, base)


def _costs(experiments: list[Any], ledger: Ledger) -> str:
    lines = ["| experiment | trainings | CPU-hours |", "|---|---|---|"]
    for experiment in experiments:
        count = sum(line["experiment"] == experiment.name for line in ledger.lines)
        hours = ledger.cpu_hours(experiment.name)
        lines.append(f"| {experiment.name} | {count} | {hours:.2f} |")
    lines.append(f"| all | {len(ledger.lines)} | {ledger.cpu_hours():.2f} |")
    return "\n".join(lines)


def _theory(folder: Path) -> str:
    figures.risks(folder / "evidence_closed_form.svg")
    lines = [
        "| N, ‖δ‖ | " + " | ".join(closed_form.METHODS) + " | largest gap to 2000 draws |",
        "|---|" + "---|" * (len(closed_form.METHODS) + 1),
    ]
    for row in closed_form.table():
        theory, drawn = row["theory"], row["simulation"]
        best = min(theory.values())
        cells = [
            f"**{risk:.3f}**" if math.isclose(risk, best) else f"{risk:.3f}"
            for risk in theory.values()
        ]
        gap = max(abs(theory[name] - drawn[name]) for name in theory)
        lines.append(f"| {row['N']}, {row['delta']:g} | " + " | ".join(cells) + f" | {gap:.3f} |")
    image = "![Risk over N and over the source's error](evidence_closed_form.svg)"
    return "\n\n".join([_read("closed_form"), image, "\n".join(lines)])


def _read(name: str) -> str:
    path = READING / f"{name}.md"
    text = path.read_text().strip() if path.exists() else ""
    return text.replace("{selection}", str(SELECTION_SEED))
