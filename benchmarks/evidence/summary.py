"""From the ledger's lines to the rows of a table: means, spreads, paired differences."""

import statistics
from dataclasses import dataclass
from typing import Any

from arms import SELECTION_SEED, Choice
from driver import chosen
from ledger import Ledger


@dataclass(frozen=True)
class Row:
    """One arm: its choice, and by seed what was measured on test rows.

    Attributes:
        accuracy: seed -> accuracy on the target.
        retention: seed -> what is left of the source; empty where there is no source.
    """

    arm: str
    choice: Choice
    accuracy: dict[int, float]
    retention: dict[int, float]


def rows(experiment: Any, ledger: Ledger) -> list[Row]:
    """Every arm of which something is known, in the experiment's order."""
    found = []
    for arm, choice in chosen(experiment, ledger).items():
        lines = {
            seed: ledger.find(experiment.name, choice.settings, seed) for seed in experiment.seeds
        }
        scores = {
            seed: line["results"]["test"][choice.variant] for seed, line in lines.items() if line
        }
        kept = {s: score["retention"] for s, score in scores.items()}
        found.append(
            Row(
                arm,
                choice,
                {seed: score["accuracy"] for seed, score in scores.items()},
                {seed: value for seed, value in kept.items() if value is not None},
            )
        )
    return found


def spread(values: dict[int, float]) -> str:
    """mean ± standard deviation over seeds, in hundredths; the mean alone for one seed."""
    if not values:
        return "–"
    mean = 100 * statistics.mean(values.values())
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values.values()):.1f}"


def paired(values: dict[int, float], base: dict[int, float]) -> str:
    """Mean difference ± standard error over the seeds both have; n.s. within two of them."""
    common = sorted(values.keys() & base.keys())
    if not common:
        return "–"
    differences = [100 * (values[seed] - base[seed]) for seed in common]
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.1f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.2f} ± {error:.2f}" + (" n.s." if abs(mean) < 2 * error else "")


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in one coordinate without losing in the other."""
    best, kept = float("-inf"), []
    for x, y in sorted(points, reverse=True):
        if y > best:
            kept.append((x, y))
            best = y
    return kept[::-1]


def spelled(choice: Choice) -> str:
    """The chosen settings in a few words."""
    settings, words = choice.settings, []
    if "learning_rate" in settings:
        words.append(f"lr {settings['learning_rate'] * settings.get('rate_factor', 1.0):g}")
    for block in settings.get("penalty", []):
        words += [f"λ {block['lambda']:g}" if "lambda" in block else f"weight {block['weight']:g}"]
    named = {"decay": "decay", "weight_decay": "weight decay", "C": "C"}
    words += [f"{name} {settings[key]:g}" for key, name in named.items() if settings.get(key)]
    if choice.variant != "final":
        words.append(choice.variant.replace("stop", "stopped at").replace("wise", "α"))
    return ", ".join(words) + (
        "" if choice.tried == choice.of else f" ({choice.tried}/{choice.of})"
    )


def tried(experiment: Any, ledger: Ledger) -> list[tuple[str, dict, dict]]:
    """Every state trained on the selection seed: (settings, validation score, test score)."""
    found = []
    for line in ledger.lines:
        if (line["experiment"], line["seed"]) != (experiment.name, SELECTION_SEED):
            continue
        settings, results = line["settings"], line["results"]
        kinds = [settings["freeze"]["type"]] if "freeze" in settings else []
        kinds += [
            " ".join(filter(None, (b["type"], b.get("apply")))) for b in settings.get("penalty", [])
        ]
        for variant, score in results["test"].items():
            words = [*(kinds or ["plain"]), spelled(Choice(settings, variant))]
            found.append((", ".join(words), results["validation"][variant], score))
    return sorted(found, key=lambda row: row[0])
