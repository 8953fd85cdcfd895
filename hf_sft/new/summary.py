"""What `hf-sft new` tells: splits, columns, labels and their balance, and what looks wrong."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Image

from hf_sft.new.column_roles import kind_of
from hf_sft.new.findings import counted, short
from hf_sft.new.look import Labels, label_name
from hf_sft.new.recipe import Proposal
from hf_sft.table import table

ENDS = 5  # classes shown from the top and the bottom when there are many


def summary(proposal: Proposal) -> str:
    """All of it, in the order in which one reads it."""
    parts = [
        table(["split", "rows"], [[s, f"{len(rows):,}"] for s, rows in proposal.data.items()]),
        "\n".join(_columns(proposal)),
    ]
    if any(proposal.labels.values()):
        parts.append("\n".join(_labels(proposal.labels)))
    if proposal.refusal is not None:
        parts.append(f"Before it runs, the data need a correction:\n{proposal.refusal}")
    if proposal.source is not None:
        parts.append(f"The source does not fit as it stands:\n{proposal.source}")
    parts.append("\n".join(_findings(proposal)))
    if proposal.decisions:
        parts.append("\n".join(proposal.decisions))
    return "\n\n".join(parts)


def _columns(proposal: Proposal) -> Iterator[str]:
    """Name, type, use and an example of every column of train, in columns."""
    rows, roles = proposal.data["train"], proposal.roles
    used = dict.fromkeys(roles.inputs, "input") | {roles.answer: "answer"}
    example = rows.select(range(1))
    lines = [("column", "type", "used as", "example")]
    for name in rows.column_names:
        kind = kind_of(rows.features, name)
        shown = _example(example.features[name], example[name][0])
        lines.append((name, kind, used.get(name, "-"), shown))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    lines.insert(1, tuple("-" * width for width in [*widths, len("example")]))
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        yield "  ".join(cells).rstrip()


def _example(feature: Any, value: Any) -> str:
    """A value of a column as a person would write it."""
    if isinstance(feature, ClassLabel):
        return short(label_name(feature, value))
    if isinstance(feature, Image) and not getattr(value, "filename", ""):  # bytes in the data
        return f"{value.width} × {value.height} pixels"
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        return f"{counted(max(map(len, value.values()), default=0), 'object')}"
    return short(Path(getattr(value, "filename", "")).name if isinstance(feature, Image) else value)


def _labels(labels: Labels) -> Iterator[str]:
    """Rows of each class in each split; of many classes the largest and the smallest."""
    counts = {split: Counter(filter(None, names)) for split, names in labels.items()}
    ranked = [name for name, _ in sum(counts.values(), Counter()).most_common()]
    ranked.sort(key=lambda name: -counts["train"][name])
    shown = ranked
    if len(ranked) > 3 * ENDS:
        shown = [*ranked[:ENDS], None, *ranked[-ENDS:]]
    yield f"{counted(len(ranked), 'class')}"
    cells = [
        ["…", *["…"] * len(counts)]
        if name is None
        else [short(name, 40)[1:-1], *(f"{found[name]:,}" for found in counts.values())]
        for name in shown
    ]
    yield table(["label", *counts], cells)


def _findings(proposal: Proposal) -> Iterator[str]:
    if not proposal.findings:
        yield "Nothing looks wrong." if proposal.refusal is None else "No other fault was found."
        return
    yield "What looks wrong (rows count from 1, without a header):"
    for number, finding in enumerate(proposal.findings, 1):
        yield f"{number}. {finding}"
