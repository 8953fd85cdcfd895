"""What is about to happen, before anything does: one table for ``run`` and for ``check``."""

from typing import Any

from hf_sft.errors import listing
from hf_sft.table import table as as_table
from hf_sft.trainer import TransferTrainer


def rows(trainer: TransferTrainer) -> list[dict[str, Any]]:
    """Per layer group: parameters, how many train, λ, learning rate, mode of the norm layers."""
    still = {id(module) for module in trainer.follower._still}
    norms = {name: m for name, m in trainer.model.named_modules() if _is_norm(trainer, name)}
    parameters = dict(trainer.model.named_parameters())
    found = []
    for group in trainer.layer_groups:
        sizes = {name: parameters[name].numel() for name in group.parameters}
        trains = sum(n for name, n in sizes.items() if parameters[name].requires_grad)
        inside = [m for name, m in norms.items() if _owner(group, name)]
        frozen = [id(module) in still for module in inside]
        found.append(
            {
                "name": group.name,
                "parameters": sum(sizes.values()),
                "trainable": trains,
                "lambda": _coefficient(trainer, group, parameters),
                "learning_rate": trainer.args.learning_rate if trains else 0.0,
                "norm": ("eval" if all(frozen) else "train") if inside else None,
            }
        )
    return found


def table(trainer: TransferTrainer, source: str, splits: dict[str, int]) -> str:
    """The plan as text."""
    groups = rows(trainer)
    cells = [
        [
            row["name"],
            f"{row['parameters']:,}",
            "all" if row["trainable"] == row["parameters"] else f"{row['trainable']:,}",
            "-" if row["lambda"] is None else f"{row['lambda']:g}",
            f"{row['learning_rate']:g}",
            row["norm"] or "-",
        ]
        for row in groups
    ]
    total, trains = (sum(row[key] for row in groups) for key in ("parameters", "trainable"))
    lines = [
        f"Source {source}",
        f"New    {listing(sorted(trainer.starting_point.fresh), 6) or 'nothing'}",
        "Data   " + ", ".join(f"{split} {count:,}" for split, count in splits.items()),
        as_table(["group", "parameters", "trains", "λ", "learning rate", "norm"], cells),
        f"{trains:,} of {total:,} parameters train. Weights, gradients, optimizer and θ⁰: "
        f"{memory(trainer) / 2**20:,.0f} MiB, activations not counted.",
    ]
    return "\n".join(lines)


def memory(trainer: TransferTrainer) -> int:
    """Bytes of weights, gradients, two Adam moments and θ⁰; activations are not in it."""
    size = {n: p.numel() * p.element_size() for n, p in trainer.model.named_parameters()}
    trains = sum(size[name] for name in trainer.ever_trains)
    start = sum(size[name] for name in trainer.starting_point.copies) if trainer.penalties else 0
    moments = 2 if "adam" in str(trainer.args.optim) else 1
    return sum(size.values()) + trains * (1 + moments) + start


def _coefficient(trainer: TransferTrainer, group: Any, parameters: dict) -> float | None:
    """The group's λ where something of it trains and is pulled; None where nothing is."""
    if not trainer.pull.weight_priors:
        return None
    names = [name for name in group.parameters if parameters[name].requires_grad]
    return max((trainer.pull.strength(name) for name in names), default=None)


def _is_norm(trainer: TransferTrainer, name: str) -> bool:
    return name in trainer.layer_groups.norm_modules


def _owner(group: Any, module: str) -> bool:
    return any(name.rpartition(".")[0] == module for name in (*group.parameters, *group.buffers))
