"""What is about to happen, before anything does: one table for ``run`` and for ``check``."""

from typing import Any

from hf_sft.errors import listing
from hf_sft.outlook import Outlook
from hf_sft.table import table as as_table
from hf_sft.tasks.pooling import reads_mean
from hf_sft.training.trainer import TransferTrainer

READS_MEAN = "Head   reads the mean of all tokens (task.pooling)"
MOST_LINES = 3  # of one group in the table
MOST_NEW = 6  # parameters that are named one by one
WAITS = {
    "gradients": "the task's gradient at every step",
    "score": "the score of every evaluation",
}
HEADER = ["group", "parameters", "trains", "when", "λ", "learning rate", "norm"]


def rows(trainer: TransferTrainer) -> list[dict[str, Any]]:
    """What every layer group will do, over time; see `Outlook.rows`."""
    return Outlook(trainer).rows()


def table(trainer: TransferTrainer, source: str, splits: dict[str, int]) -> str:
    """The plan as text."""
    groups = rows(trainer)
    cells = [line for row in groups for line in _lines(row)]
    timeless = {line[3] for line in cells} <= {"always", "never"}
    keep = [i for i in range(len(HEADER)) if not (timeless and i == HEADER.index("when"))]
    total, trains = (sum(row[key] for row in groups) for key in ("parameters", "trainable"))
    pulls = [": ".join(filter(None, (p.type, p.formula))) for p in trainer.penalties]
    lines = [
        f"Source {source}",
        f"New    {listing(_new(trainer), MOST_NEW) or 'nothing'}",
        *([READS_MEAN] if reads_mean(trainer.model) else []),
        "Data   " + ", ".join(f"{split} {count:,}" for split, count in splits.items()),
        *(f"Pull   {pull}" for pull in pulls),
        *_without_effect(trainer, groups),
        as_table([HEADER[i] for i in keep], [[line[i] for i in keep] for line in cells]),
        *waits(trainer),
        *([f"Cache  {trainer.cache_outlook()}"] if trainer.cache else []),
        f"{trains:,} of {total:,} parameters train. Weights, gradients, optimizer and θ⁰: "
        f"{memory(trainer) / 2**20:,.0f} MiB, activations not counted.",
    ]
    return "\n".join(lines)


def _without_effect(trainer: TransferTrainer, groups: list[dict[str, Any]]) -> list[str]:
    """What nobody would ask for on purpose: penalties where only a new head trains."""
    held = [p.type for p in trainer.penalties]
    opened = {row["name"] for row in groups if row["trainable"]}
    fresh = {
        g.name for g in trainer.layer_groups if set(g.parameters) <= trainer.starting_point.fresh
    }
    if not held or not opened <= fresh & {"head"}:
        return []
    return [
        f"       Nothing of the source trains: {listing(held)} can act on the new head at most."
    ]


def _new(trainer: TransferTrainer) -> list[str]:
    """What did not come from the source: by name, or by group where there is more of it."""
    fresh = sorted(trainer.starting_point.fresh)
    if len(fresh) <= MOST_NEW:
        return fresh
    whole = [g for g in trainer.layer_groups if g.parameters and set(g.parameters) <= set(fresh)]
    rest = set(fresh).difference(*(group.parameters for group in whole))
    return [*(group.name for group in whole), *sorted(rest)]


def _lines(row: dict[str, Any]) -> list[list[str]]:
    """A line for every phase in which the group trains; one where it never does, or too often."""
    phases = [phase for phase in row["phases"] if phase["trainable"]]
    whens = [f"{100 * phase['from']:.3g}–{100 * phase['to']:.3g} %" for phase in phases]
    if not phases:
        phases, whens = row["phases"][:1], ["never"]
    elif len(phases) > MOST_LINES:
        share = sum(phase["to"] - phase["from"] for phase in phases)
        whens, phases = [f"{len(phases)} times, {100 * share:.3g} %"], phases[:1]
    elif len(row["phases"]) == 1:
        whens = ["always"]
    every = row["parameters"]
    lines = []
    for number, (phase, when) in enumerate(zip(phases, whens, strict=True)):
        count = phase["trainable"]
        first = [row["name"], f"{every:,}"] if number == 0 else ["", ""]
        trains = "all" if count == every else f"{count:,}"
        rate = _range(phase, "learning_rate")
        lines.append([*first, trains, when, _range(phase, "lambda"), rate, phase["norm"] or "-"])
    return lines


def _range(phase: dict[str, Any], key: str) -> str:
    """A value, or where it starts and where it arrives."""
    ends = [phase[key], phase.get(f"{key}_end", phase[key])]
    shown = ["-" if value is None else f"{value:g}" for value in ends]
    return " → ".join(dict.fromkeys(shown))


def waits(trainer: TransferTrainer) -> list[str]:
    """What a policy that follows signals waits for, as a line; none where time decides alone."""
    seen = [WAITS[key] for key in sorted(trainer.freeze.watches)]
    if not seen:
        return []
    return [
        f"{trainer.freeze.type} also follows {' and '.join(seen)}: this is its plan before it has "
        "seen any."
    ]


def memory(trainer: TransferTrainer) -> int:
    """Bytes of weights, gradients, two Adam moments, θ⁰ and a source that penalties call.

    Activations are not in it.
    """
    size = {n: p.numel() * p.element_size() for n, p in trainer.model.named_parameters()}
    trains = sum(size[name] for name in trainer.ever_trains)
    start = sum(size[name] for name in trainer.starting_point.copies) if trainer.penalties else 0
    moments = 2 if "adam" in str(trainer.args.optim) else 1
    source = trainer.source_pass.function
    beside = sum(p.numel() * p.element_size() for p in source.model.parameters()) if source else 0
    return sum(size.values()) + trains * (1 + moments) + start + beside
